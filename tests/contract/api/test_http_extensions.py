"""The routes that the service does not have: `docs/compatibility.md`, the rules X…"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from batchline.domain.ids import DEFAULT_PROJECT
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.domain.model import Batch, BlobKind, BlobRange, Purpose
from batchline.store.database import Database
from tests.contract.api.serving import PURPOSE, ApiServer, Reply, assert_usual_headers, part
from tests.contract.store_rows import (
    NOW,
    brought_to,
    claimed,
    commits,
    finalized,
    moved,
    settling,
    started,
    uploaded,
)
from tests.support.inputs import MODEL, make_lines

# -- receipt -------------------------------------------------------------------------------------


@pytest.mark.rule("X1")
async def test_a_receipt_is_there_from_the_cancel_on_and_grows(
    api: ApiServer, store: Database
) -> None:
    batch = await brought_to(store, BatchStatus.IN_PROGRESS)
    await api.request("POST", f"/v1/batches/{batch.id}/cancel")
    reply = await api.request("GET", f"/v1/batches/{batch.id}/receipt")
    assert reply.status == 200
    asked = {
        "object": "batch.receipt",
        "batch_id": batch.id,
        "status": "cancelling",
        "requested_at": int(api.clock.now),
        "requested_by": {"project_id": DEFAULT_PROJECT, "key_id": None},
    }
    open_ends = {
        "acknowledged_ms": None,
        "in_flight_at_acknowledgement": None,
        "workers_killed": None,
        "quiet": None,
        "quiet_ms": None,
        "lines_finished": None,
        "lines_aborted": None,
        "lines_never_sent": None,
        "backends": None,
        "calls_saved": 0,
    }
    assert reply.json == {**asked, **open_ends}
    assert list(reply.json) == [*asked, *open_ends]
    known = {"quiet": True, "lines_finished": 3, "workers_killed": [], "of_a_newer_version": 1}
    await store.put_receipt(batch.id, known)
    await finalized(store, await store.load_batch(batch.id))
    del known["of_a_newer_version"]
    reply = await api.request("GET", f"/v1/batches/{batch.id}/receipt")
    assert reply.json == {**asked, **open_ends, **known, "status": "cancelled"}


@pytest.mark.rule("X1")
@pytest.mark.parametrize(
    "status",
    [
        BatchStatus.VALIDATING,
        BatchStatus.IN_PROGRESS,
        BatchStatus.COMPLETED,
        BatchStatus.FAILED,
        BatchStatus.EXPIRED,
    ],
)
async def test_a_batch_that_nobody_cancelled_has_no_receipt(
    api: ApiServer, store: Database, status: BatchStatus
) -> None:
    batch = await brought_to(store, status)
    reply = await api.request("GET", f"/v1/batches/{batch.id}/receipt")
    assert reply.status == 404
    assert reply.error["message"] == f"Batch '{batch.id}' was never cancelled."


@pytest.mark.rule("X1")
async def test_a_cancel_whose_receipt_was_lost_still_says_when(
    api: ApiServer, store: Database
) -> None:
    batch = await brought_to(store, BatchStatus.IN_PROGRESS)
    batch = await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
    reply = await api.request("GET", f"/v1/batches/{batch.id}/receipt")
    assert reply.json["requested_at"] == batch.cancelling_at
    assert reply.json["requested_by"] is None


# -- results -------------------------------------------------------------------------------------

LINES: Final = [b'{"a":1}\n', b'{"bb":2}\n', b'{"ccc":3}\n']
ENDS: Final = [0, 8, 17, 27]


async def running_with_results(api: ApiServer, store: Database) -> Batch:
    """A batch in progress whose lines 0 to 2 settled as LINES, with a commit each."""
    writer = api.blobs.writer(BlobKind.SEGMENT)
    await writer.write(b"".join(LINES))
    segment = await writer.finish()
    batch = await started(store)
    shard = await claimed(store, batch)
    for number in range(3):
        part_of = BlobRange(blob=segment.name, start=ENDS[number], stop=ENDS[number + 1])
        settled = settling(shard, finished=range(number + 1))
        assert await commits(store, replace(settled, output=part_of)) == [True]
    return batch


async def results(api: ApiServer, batch: Batch, query: str = "") -> Reply:
    return await api.request("GET", f"/v1/batches/{batch.id}/results{query}")


@pytest.mark.rule("X2")
async def test_results_are_given_from_where_the_reader_was(api: ApiServer, store: Database) -> None:
    batch = await running_with_results(api, store)
    everything = b"".join(LINES)
    for status in ("in_progress", "cancelled"):
        for begin in ENDS:
            reply = await results(api, batch, f"?after={begin}")
            assert (reply.status, reply.body) == (200, everything[begin:])
            assert reply.headers["content-type"] == "application/jsonl"
            assert reply.headers["x-batchline-next-after"] == "27"
            assert reply.headers["x-batchline-batch-status"] == status
            assert_usual_headers(reply)
        short = await results(api, batch, "?limit=9")
        assert (short.body, short.headers["x-batchline-next-after"]) == (everything[:17], "17")
        if status == "in_progress":
            await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))


@pytest.mark.rule("X2")
@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("?after=x", "after", "invalid_type"),
        ("?after=-1", "after", "integer_below_min_value"),
        ("?after=1", "after", "invalid_value"),
        ("?after=9", "after", "invalid_value"),
        ("?after=28", "after", "invalid_value"),
        ("?after=999999999999999999", "after", "invalid_value"),
        ("?after=9999999999999999999", "after", "invalid_type"),
        ("?limit=0", "limit", "integer_below_min_value"),
        ("?limit=all", "limit", "invalid_type"),
    ],
)
async def test_a_place_where_no_line_begins_is_refused(
    api: ApiServer, store: Database, query: str, param: str, code: str
) -> None:
    batch = await running_with_results(api, store)
    reply = await results(api, batch, query)
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, code)


@pytest.mark.rule("X2")
async def test_a_place_from_before_a_repair_is_refused_and_the_reader_begins_again(
    api: ApiServer, store: Database
) -> None:
    """Line 1 moved up to where line 0 was: an old place may begin another line by chance."""
    batch = await running_with_results(api, store)
    (first, *_) = await store.committed_ranges(batch.id, after=0, limit=1)
    batch = await moved(store, batch, BatchEvent.ALL_LINES_FINISHED)
    assert await store.unsettle_ranges(
        batch.id, [first.sequence], from_status=batch.status, stopping=None, now=NOW
    )
    for place in (8, 9, 17):  # 9 is where a line begins now
        reply = await results(api, batch, f"?after={place}")
        assert (reply.status, reply.error["param"]) == (400, "after")
        assert "begin again at 0" in reply.error["message"]
    reply = await results(api, batch, "?limit=1")
    assert reply.body == LINES[1]
    rest = await results(api, batch, f"?after={reply.headers['x-batchline-next-after']}")
    assert rest.body == LINES[2]
    last = rest.headers["x-batchline-next-after"]
    assert (await results(api, batch, f"?after={last}")).body == b""
    assert (await results(api, batch, f"?after={2**48 * 2 + 9}")).status == 400


@pytest.mark.rule("X2")
async def test_a_batch_without_results_has_an_empty_answer(api: ApiServer, store: Database) -> None:
    for status in BatchStatus:
        batch = await brought_to(store, status)
        reply = await results(api, batch)
        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers["x-batchline-next-after"] == "0"
        assert reply.headers["x-batchline-batch-status"] == status


@pytest.mark.rule("X2")
async def test_results_go_with_the_output_file(api: ApiServer, store: Database) -> None:
    batch = await running_with_results(api, store)
    ended = await finalized(store, await moved(store, batch, BatchEvent.CANCEL_REQUESTED))
    assert (await api.request("DELETE", f"/v1/files/{ended.output_file_id}")).status == 200
    for query in ("", "?after=8"):
        reply = await results(api, batch, query)
        assert reply.status == 404
        assert "deleted or have expired" in reply.error["message"]


# -- dry run -------------------------------------------------------------------------------------


async def sent(api: ApiServer, content: bytes) -> dict[str, Any]:
    """The body of a create over an uploaded file."""
    made = await api.upload(PURPOSE, part("file", content, filename="in.jsonl"))
    return {
        "input_file_id": made.json["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }


async def assert_nothing_written(api: ApiServer, blobs: Sequence[str]) -> None:
    assert api.stored_blobs() == blobs
    assert api.runner.was_created == []
    assert (await api.request("GET", "/v1/batches")).json["data"] == []


@pytest.mark.rule("X3")
async def test_a_dry_run_of_a_good_file_says_so_and_writes_nothing(api: ApiServer) -> None:
    body = await sent(api, make_lines(12, blank_every=5))
    before = api.stored_blobs()
    reply = await api.post_json("/v1/batches/validate", {**body, "metadata": {"a": "b"}})
    assert reply.status == 200
    assert reply.json == {
        "object": "batch.validation",
        "valid": True,
        "model": MODEL,
        "lines": 12,
        "skipped": 0,
        "errors": None,
    }
    await assert_nothing_written(api, before)


@pytest.mark.rule("X3")
async def test_a_dry_run_names_every_problem_as_the_batch_would(api: ApiServer) -> None:
    lines = make_lines(4).splitlines(keepends=True)
    body = await sent(api, lines[0] + b"{\n" + lines[1] + lines[0] + lines[2])
    before = api.stored_blobs()
    reply = await api.post_json("/v1/batches/validate", body)
    assert (reply.status, reply.json["valid"], reply.json["lines"]) == (200, False, 0)
    assert reply.json["errors"]["object"] == "list"
    problems = [(one["line"], one["code"], one["param"]) for one in reply.json["errors"]["data"]]
    assert problems == [(2, "invalid_json_line", None), (4, "duplicate_custom_id", "custom_id")]
    await assert_nothing_written(api, before)


@pytest.mark.rule("X3")
async def test_a_dry_run_of_what_is_no_input_file_is_a_problem_and_not_an_error(
    api: ApiServer, store: Database
) -> None:
    body = await sent(api, make_lines(1))
    other = await uploaded(store, purpose=Purpose.VISION)
    for file_id, message in [
        ("file-none", "Cannot find file file-none"),
        (other[0].id, "has purpose 'vision'"),
    ]:
        reply = await api.post_json("/v1/batches/validate", {**body, "input_file_id": file_id})
        assert (reply.status, reply.json["valid"], reply.json["model"]) == (200, False, None)
        (problem,) = reply.json["errors"]["data"]
        assert (problem["code"], problem["param"]) == ("invalid_request", "file_id")
        assert message in problem["message"]


@pytest.mark.rule("X3")
async def test_a_dry_run_of_lost_bytes_is_our_fault_and_of_a_deleted_file_is_not(
    api: ApiServer,
) -> None:
    body = await sent(api, make_lines(1))
    (path,) = (api.blobs_root / name for name in api.stored_blobs())
    path.unlink()
    reply = await api.post_json("/v1/batches/validate", body)
    assert [one["code"] for one in reply.json["errors"]["data"]] == ["server_error"]
    await api.request("DELETE", f"/v1/files/{body['input_file_id']}")
    reply = await api.post_json("/v1/batches/validate", body)
    assert [one["param"] for one in reply.json["errors"]["data"]] == ["file_id"]


@pytest.mark.rule("X3")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"endpoint": "/v1/x"}, "invalid_value"),
        ({"completion_window": "1h"}, "invalid_value"),
        ({"metadata": []}, "invalid_type"),
        ({"priority": 1}, "unknown_parameter"),
        ({"idempotency_key": 7}, "invalid_type"),
        ({"idempotency_key": ""}, "invalid_value"),
    ],
)
async def test_a_dry_run_of_a_create_that_would_be_refused_is_refused(
    api: ApiServer, change: dict[str, Any], code: str
) -> None:
    order = {
        "input_file_id": "file-none",
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    asked = {**order, **change}
    reply = await api.post_json("/v1/batches/validate", asked)
    assert (reply.status, reply.error["code"]) == (400, code)
    assert reply.error == (await api.post_json("/v1/batches", asked)).error

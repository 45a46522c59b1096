"""Batches over HTTP, on a real store: `docs/compatibility.md`, the rules B… and C…"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from batchline.domain.errors import StoreUnavailable
from batchline.domain.ids import DEFAULT_PROJECT, BatchId, ProjectId
from batchline.domain.lifecycle import BatchEvent, BatchStatus, sources
from batchline.domain.model import Batch, LineProblem
from batchline.service.batches import Batches
from batchline.store.database import Database
from tests.contract.api.serving import FILE, PURPOSE, ApiServer, RecordingRunner
from tests.contract.store_rows import asked_for, brought_to, uploaded, validating

ORDER: dict[str, Any] = {
    "input_file_id": "file-none",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}


# -- create --------------------------------------------------------------------------------------


@pytest.mark.rule("B1")
@pytest.mark.rule("B3")
@pytest.mark.rule("B17")
async def test_a_new_batch_has_every_field_in_the_services_order(api: ApiServer) -> None:
    file = (await api.upload(PURPOSE, FILE)).json
    reply = await api.post_json(
        "/v1/batches", {**ORDER, "input_file_id": file["id"], "metadata": {"b": "1", "a": "é"}}
    )
    created_at = int(api.clock.now)
    assert reply.status == 200
    assert list(reply.json.items()) == [
        ("id", reply.json["id"]),
        ("object", "batch"),
        ("endpoint", "/v1/chat/completions"),
        ("model", None),
        ("errors", None),
        ("input_file_id", file["id"]),
        ("completion_window", "24h"),
        ("status", "validating"),
        ("output_file_id", None),
        ("error_file_id", None),
        ("created_at", created_at),
        ("in_progress_at", None),
        ("expires_at", created_at + 86_400),
        ("finalizing_at", None),
        ("completed_at", None),
        ("failed_at", None),
        ("expired_at", None),
        ("cancelling_at", None),
        ("cancelled_at", None),
        ("request_counts", {"total": 0, "completed": 0, "failed": 0}),
        (
            "usage",
            {
                "input_tokens": 0,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 0,
            },
        ),
        ("metadata", {"b": "1", "a": "é"}),
    ]
    again = await api.request("GET", f"/v1/batches/{reply.json['id']}")
    assert again.body == reply.body


@pytest.mark.rule("B2")
async def test_a_batch_id_begins_with_its_creation_time(api: ApiServer) -> None:
    batch = (await api.post_json("/v1/batches", ORDER)).json
    digits = batch["id"].removeprefix("batch_")
    assert len(digits) == 32
    assert int(digits[:8], 16) == batch["created_at"]


@pytest.mark.rule("B4")
async def test_the_input_file_need_not_exist_and_validation_is_woken(api: ApiServer) -> None:
    reply = await api.post_json("/v1/batches", ORDER)
    assert (reply.status, reply.json["status"]) == (200, "validating")
    assert [batch.id for batch in api.runner.was_created] == [reply.json["id"]]


async def refused(api: ApiServer, body: object) -> dict[str, Any]:
    """The error of a create that must answer 400 and create nothing."""
    reply = await api.post_json("/v1/batches", body)
    assert reply.status == 400
    assert api.runner.was_created == []
    assert (await api.request("GET", "/v1/batches")).json["data"] == []
    return reply.error


@pytest.mark.rule("B5")
@pytest.mark.parametrize("name", list(ORDER))
async def test_a_missing_field_is_named(api: ApiServer, name: str) -> None:
    error = await refused(api, {key: value for key, value in ORDER.items() if key != name})
    assert error == {
        "message": f"Missing required parameter: '{name}'.",
        "type": "invalid_request_error",
        "param": name,
        "code": "missing_required_parameter",
    }


@pytest.mark.rule("B5")
@pytest.mark.parametrize("name", list(ORDER))
@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "null"), (7, "an integer"), (1.5, "a decimal"), (True, "a boolean"), ([], "an array")],
)
async def test_a_field_of_the_wrong_type_is_named(
    api: ApiServer, name: str, value: object, kind: str
) -> None:
    error = await refused(api, {**ORDER, name: value})
    assert (error["param"], error["code"]) == (name, "invalid_type")
    assert error["message"] == (
        f"Invalid type for '{name}': expected a string, but got {kind} instead."
    )


@pytest.mark.rule("B5")
@pytest.mark.parametrize("body", [[], "text", None, 5])
async def test_a_body_that_is_no_object_is_refused(api: ApiServer, body: object) -> None:
    assert (await refused(api, body))["code"] == "invalid_type"


@pytest.mark.rule("B5")
@pytest.mark.parametrize("file_id", ["", "file-\x00", "file-ä", "f" * 500])
async def test_an_input_file_id_that_no_file_can_have_is_refused(
    api: ApiServer, file_id: str
) -> None:
    error = await refused(api, {**ORDER, "input_file_id": file_id})
    assert (error["param"], error["code"]) == ("input_file_id", "invalid_value")


@pytest.mark.rule("B6")
async def test_an_unknown_endpoint_is_refused_with_those_that_are_supported(
    api: ApiServer,
) -> None:
    error = await refused(api, {**ORDER, "endpoint": "/v1/x"})
    assert (error["param"], error["code"]) == ("endpoint", "invalid_value")
    assert error["message"] == (
        "Invalid value: '/v1/x'. Supported values are: '/v1/chat/completions', "
        "'/v1/completions', '/v1/embeddings', '/v1/responses', '/v1/moderations', "
        "'/v1/images/generations', '/v1/images/edits', '/v1/videos', '/v1/rerank', "
        "and '/v1/score'."
    )


@pytest.mark.rule("B6")
@pytest.mark.rule("X5")
@pytest.mark.parametrize(
    "endpoint",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/videos",
        "/v1/rerank",
        "/v1/score",
    ],
)
async def test_every_listed_endpoint_is_taken(api: ApiServer, endpoint: str) -> None:
    reply = await api.post_json("/v1/batches", {**ORDER, "endpoint": endpoint})
    assert reply.json["endpoint"] == endpoint


@pytest.mark.rule("B7")
@pytest.mark.parametrize("window", ["1h", "48h", "invalid", ""])
async def test_only_the_windows_of_the_settings_are_taken(api: ApiServer, window: str) -> None:
    error = await refused(api, {**ORDER, "completion_window": window})
    assert error["message"] == f"Invalid value: '{window}'. Value must be '24h'."
    assert (error["param"], error["code"]) == ("completion_window", "invalid_value")


@pytest.mark.rule("B8")
async def test_metadata_values_are_strings(api: ApiServer) -> None:
    error = await refused(api, {**ORDER, "metadata": {"tags": ["a"]}})
    assert error == {
        "message": "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
        "type": "invalid_request_error",
        "param": "metadata.tags",
        "code": "invalid_type",
    }


@pytest.mark.rule("B9")
@pytest.mark.parametrize(
    ("metadata", "param", "code"),
    [
        ({f"k{n}": "v" for n in range(17)}, "metadata", "object_above_max_properties"),
        ({"k" * 65: "v"}, f"metadata.{'k' * 65}", "string_above_max_length"),
        ({"k": "v" * 513}, "metadata.k", "string_above_max_length"),
        ([], "metadata", "invalid_type"),
        ("text", "metadata", "invalid_type"),
    ],
    ids=["many", "long key", "long value", "array", "string"],
)
async def test_metadata_has_limits(api: ApiServer, metadata: object, param: str, code: str) -> None:
    error = await refused(api, {**ORDER, "metadata": metadata})
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.rule("B9")
@pytest.mark.parametrize(
    "metadata",
    [None, {}, {f"{n:064}": "ü" * 512 for n in range(16)}, {"nul": "\x00", "": ""}],
    ids=["null", "empty", "largest", "odd"],
)
async def test_metadata_within_the_limits_comes_back_as_it_was(
    api: ApiServer, metadata: object
) -> None:
    batch = (await api.post_json("/v1/batches", {**ORDER, "metadata": metadata})).json
    assert batch["metadata"] == metadata
    again = (await api.request("GET", f"/v1/batches/{batch['id']}")).json
    assert again["metadata"] == metadata


@pytest.mark.rule("B10")
@pytest.mark.parametrize(
    ("policy", "param", "code"),
    [
        ({"anchor": "created_at", "seconds": 3599}, ".seconds", "integer_below_min_value"),
        ({"anchor": "created_at", "seconds": 2_592_001}, ".seconds", "integer_above_max_value"),
        ({"anchor": "created_at", "seconds": 10**30}, ".seconds", "integer_above_max_value"),
        ({"anchor": "created_at", "seconds": "3600"}, ".seconds", "invalid_type"),
        ({"anchor": "created_at", "seconds": True}, ".seconds", "invalid_type"),
        ({"anchor": "created_at", "seconds": 3600.5}, ".seconds", "invalid_type"),
        ({"anchor": "created_at"}, ".seconds", "missing_required_parameter"),
        ({"seconds": 3600}, ".anchor", "missing_required_parameter"),
        ({"anchor": "completed_at", "seconds": 3600}, ".anchor", "invalid_value"),
        ({"anchor": "created_at", "seconds": 3600, "x": 1}, ".x", "unknown_parameter"),
        ("never", "", "invalid_type"),
    ],
)
async def test_the_expiry_of_outputs_is_checked(
    api: ApiServer, policy: object, param: str, code: str
) -> None:
    error = await refused(api, {**ORDER, "output_expires_after": policy})
    assert (error["param"], error["code"]) == (f"output_expires_after{param}", code)


@pytest.mark.rule("B10")
async def test_the_expiry_of_outputs_is_kept_for_the_finalizer(
    api: ApiServer, store: Database
) -> None:
    for seconds in (3600, 3600.0):  # both are integers to JSON Schema
        policy = {"anchor": "created_at", "seconds": seconds}
        batch = (await api.post_json("/v1/batches", {**ORDER, "output_expires_after": policy})).json
        assert (await store.load_batch(BatchId(batch["id"]))).output_expires_after_s == 3600


@pytest.mark.rule("B11")
@pytest.mark.parametrize("name", ["priority", "output_expires_after_s", ""])
async def test_an_unknown_field_is_refused_by_name(api: ApiServer, name: str) -> None:
    error = await refused(api, {**ORDER, name: 1})
    assert error == {
        "message": f"Unknown parameter: '{name}'.",
        "type": "invalid_request_error",
        "param": name,
        "code": "unknown_parameter",
    }


# -- get and list --------------------------------------------------------------------------------


@pytest.mark.rule("B12")
@pytest.mark.parametrize("path", ["GET /v1/batches/{}", "POST /v1/batches/{}/cancel"])
@pytest.mark.parametrize("batch_id", ["batch_none", "batch-nonexistent-xyz", "batch", "batch_%00"])
async def test_an_unknown_batch_is_not_found(api: ApiServer, path: str, batch_id: str) -> None:
    method, target = path.format(batch_id).split(" ")
    reply = await api.request(method, target)
    assert (reply.status, reply.error["param"], reply.error["code"]) == (404, None, None)
    shown = batch_id.replace("%00", "\x00")
    assert reply.error["message"] == f"No batch found with id '{shown}'."


@pytest.mark.rule("B13")
@pytest.mark.parametrize("path", ["GET /v1/batches/{}", "POST /v1/batches/{}/cancel"])
async def test_an_id_without_the_prefix_is_refused(api: ApiServer, path: str) -> None:
    method, target = path.format("file-1").split(" ")
    reply = await api.request(method, target)
    assert reply.status == 400
    assert reply.error == {
        "message": "Invalid 'batch_id': 'file-1'. Expected an ID that begins with 'batch'.",
        "type": "invalid_request_error",
        "param": "batch_id",
        "code": "invalid_value",
    }


@pytest.mark.rule("B14")
async def test_batches_are_listed_newest_first_twenty_at_a_time(api: ApiServer) -> None:
    ids = [(await api.post_json("/v1/batches", ORDER)).json["id"] for _ in range(21)]
    page = (await api.request("GET", "/v1/batches")).json
    assert list(page) == ["object", "data", "first_id", "last_id", "has_more"]
    assert [batch["id"] for batch in page["data"]] == ids[:0:-1]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[20], ids[1], True)


@pytest.mark.rule("B14")
@pytest.mark.parametrize(
    ("limit", "code"),
    [("0", "integer_below_min_value"), ("101", "integer_above_max_value"), ("x", "invalid_type")],
)
async def test_a_limit_is_from_1_to_100(api: ApiServer, limit: str, code: str) -> None:
    reply = await api.request("GET", f"/v1/batches?limit={limit}")
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, "limit", code)
    for allowed in (1, 100):
        assert (await api.request("GET", f"/v1/batches?limit={allowed}")).status == 200


@pytest.mark.rule("B15")
async def test_the_page_after_the_oldest_batch_is_empty_and_not_an_error(api: ApiServer) -> None:
    batch = (await api.post_json("/v1/batches", ORDER)).json
    reply = await api.request("GET", f"/v1/batches?after={batch['id']}")
    assert (reply.status, reply.json["data"], reply.json["has_more"]) == (200, [], False)


@pytest.mark.rule("B16")
@pytest.mark.parametrize("after", ["batch_none", "batch_%00", "x" * 300])
async def test_an_after_that_never_existed_is_never_page_one(api: ApiServer, after: str) -> None:
    await api.post_json("/v1/batches", ORDER)
    reply = await api.request("GET", f"/v1/batches?after={after}")
    assert (reply.status, reply.error["param"]) == (404, "after")


@pytest.mark.rule("B18")
async def test_a_failed_batch_lists_its_problems(api: ApiServer, store: Database) -> None:
    batch = (await api.post_json("/v1/batches", ORDER)).json
    later = batch["created_at"] + 7
    problems = [
        LineProblem(code="invalid_json_line", message="no JSON", line_number=2),
        LineProblem(code="empty_file", message="empty", param="file_id"),
    ]
    assert await store.refuse_batch(BatchId(batch["id"]), problems=problems, now=later)
    failed = (await api.request("GET", f"/v1/batches/{batch['id']}")).json
    assert (failed["status"], failed["failed_at"]) == ("failed", later)
    assert failed["errors"] == {
        "object": "list",
        "data": [
            {"code": "invalid_json_line", "message": "no JSON", "param": None, "line": 2},
            {"code": "empty_file", "message": "empty", "param": "file_id", "line": None},
        ],
    }


# -- cancel --------------------------------------------------------------------------------------

CANCELLABLE = [BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING]


@pytest.mark.rule("C1")
@pytest.mark.rule("C2")
@pytest.mark.parametrize("status", CANCELLABLE)
async def test_an_unfinished_batch_is_cancelling_from_then_on(
    api: ApiServer, store: Database, status: BatchStatus
) -> None:
    before = await brought_to(store, status)
    reply = await api.request("POST", f"/v1/batches/{before.id}/cancel")
    assert (reply.status, reply.json["status"]) == (200, "cancelling")
    assert reply.json["cancelling_at"] == int(api.clock.now)
    assert reply.json["in_progress_at"] == before.in_progress_at
    assert reply.json["output_file_id"] is None
    ((stopped, was),) = api.runner.was_stopped
    assert (stopped.id, stopped.status, was) == (before.id, BatchStatus.CANCELLING, status)
    after = await store.load_batch(before.id)
    assert after.receipt == {
        "requested_at": int(api.clock.now),
        "requested_by": {"project_id": DEFAULT_PROJECT, "key_id": None},
    }


@pytest.mark.rule("C3")
async def test_a_repeated_cancel_changes_nothing_and_may_rely_on_the_closed_gates_too(
    api: ApiServer, store: Database
) -> None:
    batch = await validating(store)
    first = await api.request("POST", f"/v1/batches/{batch.id}/cancel")
    api.clock.now += 100
    again = await api.request("POST", f"/v1/batches/{batch.id}/cancel")
    assert (again.status, again.body) == (200, first.body)
    told = [was for _, was in api.runner.was_stopped]
    assert told == [BatchStatus.VALIDATING, BatchStatus.CANCELLING]
    receipt = (await store.load_batch(batch.id)).receipt
    assert receipt is not None
    assert receipt["requested_at"] == int(api.clock.now) - 100


@pytest.mark.rule("C4")
async def test_cancelling_a_cancelled_batch_gives_the_batch(
    api: ApiServer, store: Database
) -> None:
    batch = await brought_to(store, BatchStatus.CANCELLED)
    reply = await api.request("POST", f"/v1/batches/{batch.id}/cancel")
    assert (reply.status, reply.json["status"]) == (200, "cancelled")
    assert (await store.load_batch(batch.id)).receipt is None


@pytest.mark.rule("C5")
@pytest.mark.parametrize("status", sorted(set(BatchStatus) - sources(BatchEvent.CANCEL_REQUESTED)))
async def test_a_batch_that_ended_otherwise_cannot_be_cancelled(
    api: ApiServer, store: Database, status: BatchStatus
) -> None:
    batch = await brought_to(store, status)
    reply = await api.request("POST", f"/v1/batches/{batch.id}/cancel")
    assert reply.status == 409
    assert reply.headers["x-should-retry"] == "false"
    assert reply.error == {
        "message": f"Cannot cancel a batch with status '{status}'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert (await store.load_batch(batch.id)).status is status


@pytest.mark.rule("C6")
@pytest.mark.parametrize("content_type", ["application/json", None])
async def test_a_cancel_has_no_body_with_or_without_a_content_type(
    api: ApiServer, store: Database, content_type: str | None
) -> None:
    batch = await validating(store)
    headers = {} if content_type is None else {"Content-Type": content_type}
    reply = await api.request("POST", f"/v1/batches/{batch.id}/cancel", headers=headers)
    assert reply.status == 200


@pytest.mark.rule("C7")
async def test_of_fifty_cancels_at_once_one_moves_the_batch(
    api: ApiServer, store: Database
) -> None:
    batch = await brought_to(store, BatchStatus.IN_PROGRESS)
    replies = await asyncio.gather(
        *[api.request("POST", f"/v1/batches/{batch.id}/cancel") for _ in range(50)]
    )
    assert {(reply.status, reply.json["status"]) for reply in replies} == {(200, "cancelling")}
    told = [was for _, was in api.runner.was_stopped]
    assert told.count(BatchStatus.IN_PROGRESS) == 1
    assert told.count(BatchStatus.CANCELLING) == 49


class Overtaken(Database):
    """A real store in which the batch finishes just before each compare-and-set of a cancel."""

    async def advance_batch(
        self, batch_id: BatchId, *, from_status: BatchStatus, event: BatchEvent, now: int
    ) -> Batch | None:
        move = super().advance_batch
        if event is BatchEvent.CANCEL_REQUESTED and from_status is BatchStatus.IN_PROGRESS:
            ended = BatchEvent.ALL_LINES_FINISHED
            await move(batch_id, from_status=from_status, event=ended, now=now)
        return await move(batch_id, from_status=from_status, event=event, now=now)

    async def put_receipt(self, batch_id: BatchId, receipt: Mapping[str, object]) -> None:
        raise StoreUnavailable(f"no receipt of {len(receipt)} items for {batch_id}")


@pytest.mark.rule("C7")
async def test_a_cancel_that_loses_a_race_looks_again_and_survives_the_loss_of_its_receipt(
    store_url: str,
) -> None:
    overtaken = await Overtaken.open(store_url)
    runner = RecordingRunner()
    before = await brought_to(overtaken, BatchStatus.IN_PROGRESS)
    after = await Batches(overtaken, runner).cancel(DEFAULT_PROJECT, before.id)
    assert after.status is BatchStatus.CANCELLING
    assert [was for _, was in runner.was_stopped] == [BatchStatus.FINALIZING]
    await overtaken.close()


@pytest.mark.rule("B12")
async def test_another_projects_batch_is_like_one_that_never_existed(
    api: ApiServer, store: Database, other_project: ProjectId
) -> None:
    file, _ = await uploaded(store, project_id=other_project)
    batch = await store.create_batch(asked_for(file.id, project_id=other_project))
    assert (await api.request("GET", f"/v1/batches/{batch.id}")).status == 404
    assert (await api.request("POST", f"/v1/batches/{batch.id}/cancel")).status == 404
    assert (await api.request("GET", f"/v1/files/{file.id}")).status == 404
    assert (await api.request("GET", f"/v1/files/{file.id}/content")).status == 404
    assert (await api.request("DELETE", f"/v1/files/{file.id}")).status == 404
    assert (await api.request("GET", "/v1/batches")).json["data"] == []
    assert (await api.request("GET", f"/v1/batches?after={batch.id}")).status == 404


# -- the official client -------------------------------------------------------------------------


@pytest.mark.rule("H1")
async def test_the_official_client_creates_reads_lists_and_cancels(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    file = await client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    created = await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/embeddings",
        completion_window="24h",
        metadata={"run": "1"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (created.status, created.metadata) == ("validating", {"run": "1"})
    assert created.request_counts is not None
    assert created.request_counts.total == 0
    assert (await client.batches.retrieve(created.id)).id == created.id
    assert [batch.id async for batch in client.batches.list(limit=1)] == [created.id]
    assert (await client.batches.cancel(created.id)).status == "cancelling"


@pytest.mark.rule("C5")
async def test_the_official_client_does_not_retry_the_409(api: ApiServer, store: Database) -> None:
    batch = await brought_to(store, BatchStatus.COMPLETED)
    async with AsyncOpenAI(base_url=api.base_url, api_key="any", max_retries=2) as client:
        with pytest.raises(openai.ConflictError) as raised:
            await client.batches.cancel(batch.id)
    assert raised.value.response.request.headers["x-stainless-retry-count"] == "0"

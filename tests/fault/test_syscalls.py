"""The order of system calls: bytes are on the disk before anybody is told of them.

A killed process loses nothing that it wrote, so kills cannot show a missing sync; power cuts would.
Here strace watches the server, its worker and its job child.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import ServerProcess, conserved, server, submit, wait_for
from tests.support.strace import (
    RENAMES,
    SYNCS,
    WRITES,
    Call,
    Trace,
    assert_in_order,
    select,
    traced,
)

WAL: Final = "batchline.sqlite3-wal>"


def everyone(running: ServerProcess) -> list[int]:
    return [running.pid, *running.children()]


def published(calls: list[Call], kind: str) -> tuple[Call, Call, Call]:
    """The sync, the rename and the folder's sync of the one blob of `kind` in the trace."""
    (rename,) = select(calls, RENAMES, f"/blobs/{kind}/")
    source = re.search(r'"([^"]+/blobs/scratch/[^"]+)"', rename.text)
    assert source is not None, rename
    synced = select(calls, SYNCS, f"<{source[1]}>")
    folder = select(calls, SYNCS, f"/blobs/{kind}>")
    assert synced, f"{source[1]} was never synced"
    assert folder, f"the folder of {rename} was never synced"
    return synced[-1], rename, folder[0]


async def test_an_upload_is_durable_before_its_row_and_the_row_before_the_answer(
    tmp_path: Path,
) -> None:
    with server(tmp_path, "http://127.0.0.1:9") as running:
        with traced(everyone(running), tmp_path) as trace:
            running.client().files.create(file=("in.jsonl", make_lines(50)), purpose="batch")
        calls = trace.calls()
    synced, renamed, folder_synced = published(calls, "input")
    row_written = select(calls, ("pwrite64", "write"), WAL)
    row_synced = select(calls, SYNCS, WAL)
    (answered,) = select(calls, WRITES, "HTTP/1.1 200")
    assert_in_order(synced, renamed, folder_synced, row_written[0])
    assert_in_order(row_written[-1], row_synced[-1], answered)


async def test_a_plan_is_durable_before_its_batch_starts_and_a_create_before_its_answer(
    tmp_path: Path,
) -> None:
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            file = client.files.create(file=("in.jsonl", make_lines(50)), purpose="batch")
            with traced(everyone(running), tmp_path) as trace:
                client.batches.create(
                    input_file_id=file.id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                )
                await backend.wait_until(min_held=50)
            calls = trace.calls()
    synced, renamed, folder_synced = published(calls, "plan")
    (answered,) = select(calls, WRITES, "HTTP/1.1 200")
    rows_synced = select(calls, SYNCS, WAL)
    rows_written = select(calls, ("pwrite64", "write"), WAL)
    assert_in_order(rows_written[0], rows_synced[0], answered)
    assert_in_order(synced, renamed, folder_synced)
    # The create wrote before the plan was there; the start, which makes shards of it, after.
    started = next(call for call in rows_synced if call.began > folder_synced.ended)
    (first_request, *_) = select(calls, WRITES, "POST /v1/chat/completions")
    assert_in_order(folder_synced, started, first_request)


async def test_a_workers_results_are_durable_before_it_offers_them_and_then_their_row(
    tmp_path: Path,
) -> None:
    content = make_lines(300)
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=64)
            with traced(everyone(running), tmp_path) as trace:
                await backend.stop_holding()
                ended = wait_for(client, batch.id)
            (worker,) = running.workers()
            summary = conserved(client, ended, content, await backend.log())
    assert summary.finished == 300
    offers = _assert_offered_after_their_sync(trace, worker)
    assert offers


def _assert_offered_after_their_sync(trace: Trace, worker: int) -> int:
    """Walk the trace: a commit goes out only when all that was written to the segment is synced.

    Then the server makes its row durable; only after that it tells the worker so.
    """
    calls = trace.calls()
    written = select(calls, ("pwrite64", "write"), "/blobs/segment/segment-")
    synced = select(calls, ("fdatasync",), "/blobs/segment/segment-")
    offered = [
        call for call in select(calls, WRITES, "Commit") if re.search(r"Commit(?!ted)", call.text)
    ]
    accepted = select(calls, WRITES, "Committed")
    (folder, *_) = select(calls, SYNCS, "/blobs/segment>")
    rows = select(calls, SYNCS, WAL)
    assert len(offered) == len(accepted)
    assert_in_order(folder, offered[0])
    for offer, answer in zip(offered, accepted, strict=True):
        last_write = max((w for w in written if w.began < offer.began), key=lambda w: w.began)
        assert any(last_write.ended < sync.began and sync.ended < offer.began for sync in synced), (
            f"{offer} offers what is not on disk"
        )
        assert any(offer.began < row.began and row.ended < answer.began for row in rows), (
            f"{answer} before its row was on disk"
        )
    return len(offered)


async def test_never_run_lines_are_durable_before_the_files_of_a_cancelled_batch_exist(
    tmp_path: Path,
) -> None:
    content = make_lines(300)
    settings = {"cancel": {"grace_s": 0.0}}
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_until(min_held=64)
            with traced(everyone(running), tmp_path) as trace:
                client.batches.cancel(batch.id)
                ended = wait_for(client, batch.id)
            calls = trace.calls()
            assert conserved(client, ended, content).cancelled == 300
    synced, renamed, folder_synced = published(calls, "never_run")
    rows_synced = select(calls, SYNCS, WAL)
    finalized = next(call for call in rows_synced if call.began > folder_synced.ended)
    (shown, *_) = select(calls, WRITES, r"\"status\":\"cancelled\"")
    assert_in_order(synced, renamed, folder_synced, finalized, shown)
    # The cancel is durable before its answer.
    (told, *_) = select(calls, WRITES, "HTTP/1.1 200")
    assert_in_order(rows_synced[0], told)

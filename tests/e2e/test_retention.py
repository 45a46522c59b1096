"""How long bytes stay: until they expire, and for as long as somebody needs them."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import openai
import pytest

from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import (
    WAIT_S,
    ServerProcess,
    conserved,
    content_of,
    server,
    submit,
    wait_for,
)
from tests.support.stored import disagreements, wait_until_rows_and_bytes_agree

DAYS_30 = 30 * 86_400
SWEEP = {"sweep_s": 0.05}
REST = {"worker": {"segment_idle_s": 0.2}}
HOLD = Script(answer=Answer(hold=True))


def kinds(running: ServerProcess) -> set[str]:
    """The kinds of blobs that are on disk."""
    return {path.parent.name for path in (running.data / "blobs").rglob("*") if path.is_file()}


def until_gone(running: ServerProcess, kind: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while kind in kinds(running):
        assert time.monotonic() < deadline, kinds(running)
        time.sleep(0.01)


@pytest.mark.rule("O8")
@pytest.mark.rule("B10")
@pytest.mark.parametrize("asked_s", [None, 7_200])
async def test_outputs_expire_by_their_own_creation_and_the_creators_wish_or_thirty_days(
    tmp_path: Path, asked_s: int | None
) -> None:
    content = make_lines(20)
    script = Script(by_id={"line-0000001": (Answer(status=400),)})
    async with backend_process(script) as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            file = client.files.create(file=("in.jsonl", content), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                output_expires_after=(
                    openai.omit if asked_s is None else {"anchor": "created_at", "seconds": asked_s}
                ),
            )
            ended = wait_for(client, batch.id)
            for file_id in (ended.output_file_id, ended.error_file_id):
                assert file_id is not None
                made = client.files.retrieve(file_id)
                assert made.expires_at == made.created_at + (asked_s or DAYS_30)
                assert made.purpose == "batch_output"
                assert client.files.delete(file_id).deleted
            assert client.batches.retrieve(batch.id) == ended


@pytest.mark.rule("F20")
@pytest.mark.rule("F22")
async def test_what_expired_is_not_found_and_then_gone_from_disk(tmp_path: Path) -> None:
    settings = {"retention": {**SWEEP, "batch_file_s": 8, "output_s": 8}, **REST}
    content = make_lines(50)
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            assert ended.output_file_id is not None
            conserved(client, ended, content)
            wait_until_not_found(client, ended.output_file_id)
            until_gone(running, "input")
            assert client.files.list().data == []
            running.wait_blobs([])
            assert running.client().batches.retrieve(ended.id) == ended


def wait_until_not_found(client: openai.OpenAI, file_id: str) -> None:
    expires_at = client.files.retrieve(file_id).expires_at
    assert expires_at is not None
    while time.time() < expires_at:
        time.sleep(0.05)
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            call(file_id)


@pytest.mark.rule("L9")
@pytest.mark.rule("F22")
@pytest.mark.parametrize("how", ["expired", "deleted"])
async def test_the_input_of_a_running_batch_outlives_its_file(tmp_path: Path, how: str) -> None:
    # Times are whole seconds, and it has to live until the batch is made.
    lifetime_s = 6 if how == "expired" else DAYS_30
    settings = {"retention": {**SWEEP, "batch_file_s": lifetime_s}}
    content = make_lines(80)  # more than are in flight: the rest has to be read later
    async with backend_process(HOLD) as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_for_arrivals(1)
            if how == "deleted":
                client.files.delete(batch.input_file_id)
            until_hidden(running, batch.input_file_id)
            until_swept(running, client)
            assert {"input", "plan"} <= kinds(running)
            await backend.stop_holding()
            ended = wait_for(client, batch.id)
            assert conserved(client, ended, content).finished == 80
            wait_until_rows_and_bytes_agree(running.data)


def until_hidden(running: ServerProcess, file_id: str) -> None:
    """Wait until the file's row was hidden, by a delete or a sweep."""
    deadline = time.monotonic() + WAIT_S
    query = "SELECT count(*) FROM file WHERE id = ? AND deleted_at IS NOT NULL"
    with closing(
        sqlite3.connect(f"file:{running.data / 'batchline.sqlite3'}?mode=ro", uri=True)
    ) as db:
        while db.execute(query, (file_id,)).fetchone() != (1,):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def until_swept(running: ServerProcess, client: openai.OpenAI) -> None:
    """Wait for a whole sweep: a file that is deleted now goes with it."""
    before = running.blob_sizes()
    client.files.delete(client.files.create(file=("a", b"12345"), purpose="user_data").id)
    running.wait_blobs(before)


async def test_rows_and_bytes_agree_after_everything_that_can_happen(tmp_path: Path) -> None:
    settings = {
        "windows": ["24h", "2s"],
        "cancel": {"grace_s": 0.05},
        "expire": {"grace_s": 0.05},
        "retention": {**SWEEP, "upload_s": 8},
        **REST,
    }
    content = make_lines(150)
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, settings=settings) as running:
            client = running.client()
            done = wait_for(client, submit(client, content).id)
            emptied = wait_for(client, submit(client, content).id)
            failed = wait_for(client, submit(client, b'{"no": "line"}\n').id)
            assert (done.status, failed.status) == ("completed", "failed")
            for file_id in (emptied.input_file_id, emptied.output_file_id):
                client.files.delete(str(file_id))
            with pytest.raises(openai.BadRequestError):
                client.files.create(file=("in.csv", content), purpose="batch")

            await backend.set_script(HOLD)
            cancelled, expired, killed = (
                submit(client, content, window=window) for window in ("24h", "2s", "24h")
            )
            client.files.delete(killed.input_file_id)
            in_parts(client, content)
            await backend.wait_for_arrivals(1)
            client.batches.cancel(cancelled.id)
            running.kill_all()
            running.start()
            client = running.client()
            assert wait_for(client, cancelled.id).status == "cancelled"
            assert wait_for(client, expired.id).status == "expired"
            await backend.set_script(Script())
            await backend.stop_holding()
            assert wait_for(client, killed.id).status == "completed"
            wait_until_rows_and_bytes_agree(running.data)

            for file in client.files.list():
                assert len(content_of(client, file.id) or b"") == file.bytes
                client.files.delete(file.id)
            running.wait_blobs([])
            wait_until_rows_and_bytes_agree(running.data)


def in_parts(client: openai.OpenAI, content: bytes) -> None:
    """An upload that is completed, one that is cancelled, and one that is left to expire."""
    client.uploads.upload_file_chunked(
        file=content,
        filename="in.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=10_000,
    )
    given_up, left = (
        client.uploads.create(bytes=4, filename="a", mime_type="", purpose="user_data")
        for _ in range(2)
    )
    for upload in (given_up, left):
        client.uploads.parts.create(upload.id, data=b"some")
    client.uploads.cancel(given_up.id)


def test_the_comparison_sees_what_does_not_fit(tmp_path: Path) -> None:
    """A comparison that can find nothing would agree with anything."""
    with server(tmp_path, "http://127.0.0.1:1") as running:
        client = running.client()
        kept, lost, grown = (
            client.files.create(file=("a", b"1234"), purpose="user_data") for _ in range(3)
        )
        assert list(disagreements(running.data)) == []
        path = running.data / "blobs" / "input"
        with closing(sqlite3.connect(running.data / "batchline.sqlite3")) as db:
            names = dict(db.execute("SELECT holder, blob_name FROM blob_reference").fetchall())
            db.execute("DELETE FROM blob_reference WHERE holder = ?", (kept.id,))
            db.commit()
        (path / names[lost.id]).unlink()
        (path / names[grown.id]).write_bytes(b"12345")
        (path / "input-stranger").write_bytes(b"")
        assert set(disagreements(running.data)) == {
            "input-stranger: bytes without a row",
            f"{names[lost.id]}: a row without bytes",
            f"{names[lost.id]}: needed by {lost.id} up to 4",
            f"{names[grown.id]}: 5 bytes, and its row says 4",
            f"{names[kept.id]}: nobody holds it",
            f"{names[kept.id]}: needed by {kept.id}, which does not hold it",
        }

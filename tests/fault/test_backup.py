"""`batchline backup`: copies made under load, restored, and held against what was there.

A copy is stopped (SIGSTOP) between its rows and its bytes, where everything that can happen beside
it happens. Restoring is what the documentation says: a server is started on the copy.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from batchline.cli.data_directory import FORMAT, DataDirectory
from batchline.domain.model import BlobKind
from batchline.store.blobs import LocalBlobs
from batchline.store.database import Database
from batchline.store.engine import sqlite_url
from tests.contract.store_rows import fresh_file
from tests.support import command, forked
from tests.support.command import ended
from tests.support.inputs import line_id, make_lines
from tests.support.pauses import POLL_S
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import (
    ServerProcess,
    conserved,
    content_of,
    server,
    submit,
    wait_for,
)
from tests.support.small_disk import mounted_disk, used_bytes
from tests.support.stored import disagreements, wait_until_rows_and_bytes_agree

LINES: Final = 300
MAX_IN_FLIGHT: Final = 64
HELD: Final = Answer(hold=True)
SWEEPS_S: Final = 0.02
SETTINGS: Final[dict[str, object]] = {
    "retention": {"sweep_s": SWEEPS_S},
    "cancel": {"grace_s": 0.0},
}
STEPS: Final = ["began", "rows", "blob", "bytes", "finished"]
MIB: Final = 1024 * 1024


def backed_up(running: ServerProcess, target: Path) -> str:
    """Make a copy and check it; what the command said."""
    made = running.command("backup", str(target))
    assert made.returncode == 0, made.stderr
    checked = command.run(["backup", "--verify", str(target)])
    assert checked.returncode == 0, checked.stderr
    return made.stdout


@contextmanager
def stopped_at(step: str, running: ServerProcess, target: Path) -> Iterator[forked.Forked]:
    """A copy under way that has come as far as `step` and stands still."""
    words = ["backup", str(target), "--data-dir", str(running.data)]
    env = {"BATCHLINE_PROBES": f"backup.{step}=stop"}
    with command.started(*words, env=env) as process:
        wait_stopped(process.pid)
        yield process


def wait_stopped(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


@contextmanager
def restored(copy: Path, folder: Path, upstream: str) -> Iterator[ServerProcess]:
    """A server on a copy of the copy."""
    folder.mkdir()
    shutil.copytree(copy, folder / "data")
    with server(folder, upstream, settings=SETTINGS) as running:
        yield running


def files_of(client: openai.OpenAI) -> dict[str, bytes]:
    return {file.id: client.files.content(file.id).content for file in client.files.list()}


def left_beside(target: Path) -> list[str]:
    """What there is of an unfinished copy."""
    return [path.name for path in target.parent.glob(f".{target.name}*")]


async def test_a_copy_made_under_load_goes_on_where_it_was(tmp_path: Path) -> None:
    ended_input, running_input, cancelled_input = (
        make_lines(LINES, start=start * LINES) for start in range(3)
    )
    # The first lines of the two that run are answered, the others under way.
    held = {line_id(start + n): (HELD,) for start in (LINES, 2 * LINES) for n in range(50, LINES)}
    half_held = Script(by_id=held)
    copy = tmp_path / "copy"
    async with backend_process() as backend:
        (tmp_path / "first").mkdir()
        with server(tmp_path / "first", backend.base_url, settings=SETTINGS) as running:
            client = running.client()
            done = wait_for(client, submit(client, ended_input).id)
            await backend.set_script(half_held)
            part = make_lines(10)
            upload = client.uploads.create(
                bytes=2 * len(part), filename="u", mime_type="application/jsonl", purpose="batch"
            )
            first_part = client.uploads.parts.create(upload.id, data=part)
            batch = submit(client, running_input)
            to_cancel = submit(client, cancelled_input)
            await backend.wait_until(min_held=MAX_IN_FLIGHT)
            before = files_of(client)
            with stopped_at("rows", running, copy) as copying:
                # Everything that can change, changes: what was there a moment ago goes or grows.
                client.batches.cancel(to_cancel.id)
                for file_id in before:
                    client.files.delete(file_id)
                client.uploads.cancel(upload.id)
                later = client.files.create(file=("later", make_lines(5)), purpose="batch")
                wait_for(client, to_cancel.id, "cancelled")
                await backend.stop_holding()
                wait_for(client, batch.id, "completed")
                os.kill(copying.pid, signal.SIGCONT)
                assert await ended(copying) == 0
            wait_until_rows_and_bytes_agree(running.data)  # and what was held has gone since
        log_before = (await backend.log()).attempts()
        checked = command.run(["backup", "--verify", str(copy)])
        assert checked.returncode == 0, checked.stderr
        assert list(disagreements(copy, exactly=True)) == []  # segments too: no byte more

        with restored(copy, tmp_path / "second", backend.base_url) as again:
            client = again.client()
            assert client.batches.retrieve(done.id) == done
            assert {id_: client.files.content(id_).content for id_ in before} == before
            conserved(client, done, ended_input)
            with pytest.raises(openai.NotFoundError):
                client.files.retrieve(later.id)
            for one, content in ((batch, running_input), (to_cancel, cancelled_input)):
                over = wait_for(client, one.id)
                assert over.status == "completed"  # the cancel came after the copy's moment
                assert conserved(client, over, content).finished == LINES
            second_part = client.uploads.parts.create(upload.id, data=part)
            whole = client.uploads.complete(upload.id, part_ids=[first_part.id, second_part.id])
            assert whole.file is not None
            assert content_of(client, whole.file.id) == 2 * part
            wait_until_rows_and_bytes_agree(again.data)
        # Sent twice is only what the copy cannot know of: what ended, here, after its moment.
        log = await backend.log()
        resent = {id_ for id_, n in log.attempts().items() if n > log_before.get(id_, 0) > 0}
        assert resent
        assert not resent & set(map(line_id, range(LINES)))


async def test_what_is_let_go_of_during_a_copy_stays_until_the_copy_is_over(
    tmp_path: Path,
) -> None:
    """The hold ends with its process, however that ends."""
    content = make_lines(50)
    with server(tmp_path, "http://127.0.0.1:9", settings=SETTINGS) as running:
        client = running.client()
        file = client.files.create(file=("a", content), purpose="batch")
        with stopped_at("rows", running, tmp_path / "copy") as copying:
            client.files.delete(file.id)
            until = time.monotonic() + 20 * SWEEPS_S
            while time.monotonic() < until:
                assert running.blob_sizes() == [len(content)]
                time.sleep(SWEEPS_S)
            second = running.command("backup", str(tmp_path / "copy"))
            assert second.returncode == 2
            assert "another copy is being made there" in second.stderr
            os.kill(copying.pid, signal.SIGKILL)
            running.wait_blobs([])
        client.files.create(file=("a", content), purpose="batch")
        backed_up(running, tmp_path / "copy")
        assert left_beside(tmp_path / "copy") == []


async def test_a_server_that_is_killed_meanwhile_does_not_spoil_the_copy(tmp_path: Path) -> None:
    content = make_lines(50)
    copy = tmp_path / "copy"
    with server(tmp_path, "http://127.0.0.1:9", settings=SETTINGS) as running:
        file = running.client().files.create(file=("a", content), purpose="batch")
        with stopped_at("rows", running, copy) as copying:
            running.kill_all()
            os.kill(copying.pid, signal.SIGCONT)
            assert await ended(copying) == 0
        assert command.run(["backup", "--verify", str(copy)]).returncode == 0

        running.start()
        with stopped_at("rows", running, tmp_path / "second") as copying:
            running.kill_all()
            running.start()  # and this one knows of no hold
            running.client().files.delete(file.id)
            running.wait_blobs([])
            os.kill(copying.pid, signal.SIGCONT)
            assert await ended(copying) == 1
        assert not (tmp_path / "second").exists()
        assert left_beside(tmp_path / "second") == []


# -- of a directory without a server -----------------------------------------------------------


@pytest.fixture
async def at_rest(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A data directory with an uploaded file in it, and no server on it so far."""
    process = ServerProcess(tmp_path, ["http://127.0.0.1:9"], settings=SETTINGS)
    directory = DataDirectory.take(process.data)
    writer = LocalBlobs(directory.blobs).writer(BlobKind.INPUT)
    await writer.write(make_lines(2000))
    blob = await writer.finish()
    store = await Database.open(sqlite_url(directory.database))
    await store.create_file(fresh_file(size=blob.bytes), blob)
    await store.close()
    directory.release()
    yield process
    process.close()


async def test_a_copy_that_is_killed_at_a_step_is_none(
    at_rest: ServerProcess, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    words = ["backup", str(copy), "--data-dir", str(at_rest.data)]
    for step in STEPS:
        killed = command.run(words, env={"BATCHLINE_PROBES": f"backup.{step}=kill"})
        assert killed.returncode == -signal.SIGKILL, step
        assert not copy.exists(), step
        assert left_beside(copy) == [".copy.unfinished"]
    killed = command.run(words, env={"BATCHLINE_PROBES": "backup.named=kill"})
    assert killed.returncode == -signal.SIGKILL
    assert left_beside(copy) == []
    assert command.run(["backup", "--verify", str(copy)]).returncode == 0


async def test_a_signal_or_an_error_leaves_nothing(at_rest: ServerProcess, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with stopped_at("rows", at_rest, copy) as copying:
        os.kill(copying.pid, signal.SIGTERM)
        os.kill(copying.pid, signal.SIGCONT)
        assert await ended(copying) == 130
    assert not copy.exists()
    assert left_beside(copy) == []
    (blob,) = (at_rest.data / "blobs" / "input").iterdir()
    blob.rename(tmp_path / "away")
    made = at_rest.command("backup", str(copy))
    assert made.returncode == 1
    assert "damaged" in made.stderr
    assert left_beside(copy) == []


async def test_a_server_that_starts_meanwhile_is_refused(
    at_rest: ServerProcess, tmp_path: Path
) -> None:
    other = ServerProcess(_made(tmp_path / "other"), ["http://127.0.0.1:9"])
    with stopped_at("rows", at_rest, tmp_path / "copy"):
        other.data = at_rest.data
        other.start(wait=False)
        assert other.wait_ended() == 2


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def test_places_where_no_copy_can_be_are_refused_and_left_alone(
    at_rest: ServerProcess, tmp_path: Path
) -> None:
    full = _made(tmp_path / "full")
    (full / "something").touch()
    for place, why in (
        (full, "not an empty directory"),
        (full / "something", "not an empty directory"),
        (at_rest.data / "copy", "inside the data directory"),
        (at_rest.data, "inside the data directory"),
        (tmp_path / "none" / "copy", "there is no directory"),
    ):
        refused = at_rest.command("backup", str(place))
        assert refused.returncode == 2, why
        assert why in refused.stderr
    assert [path.name for path in full.iterdir()] == ["something"]
    nowhere = command.run(["backup", str(tmp_path / "c"), "--data-dir", str(tmp_path / "no")])
    assert nowhere.returncode == 2
    assert "there is none" in nowhere.stderr
    (tmp_path / "empty").mkdir()
    backed_up(at_rest, tmp_path / "empty")


async def test_a_copy_is_its_owners_alone_and_links_what_never_changes(
    at_rest: ServerProcess, tmp_path: Path
) -> None:
    backed_up(at_rest, tmp_path / "copy")
    for path in [tmp_path / "copy", *(tmp_path / "copy").rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    (blob,) = (at_rest.data / "blobs" / "input").iterdir()
    assert (tmp_path / "copy" / "blobs" / "input" / blob.name).samefile(blob)


async def test_elsewhere_a_second_copy_links_to_the_first_and_a_full_disk_leaves_nothing(
    at_rest: ServerProcess, tmp_path: Path
) -> None:
    with mounted_disk(tmp_path / "disk", mib=4) as disk:
        backed_up(at_rest, disk / "one")
        (blob,) = (disk / "one" / "blobs" / "input").iterdir()
        assert not blob.samefile(at_rest.data / "blobs" / "input" / blob.name)
        assert "of which 0 B copied" in backed_up(at_rest, disk / "two")
        assert (disk / "two" / "blobs" / "input" / blob.name).samefile(blob)
        at_rest.start()
        at_rest.client().files.create(file=("b", bytes(5 * MIB)), purpose="user_data")
        used = used_bytes(disk)
        full = at_rest.command("backup", str(disk / "three"))
        assert full.returncode == 1
        assert "no space left" in full.stderr
        assert sorted(path.name for path in disk.iterdir()) == ["one", "two"]
        assert used_bytes(disk) <= used


# -- what a check finds ------------------------------------------------------------------------


async def test_a_check_finds_what_is_missing_short_or_other(tmp_path: Path) -> None:
    content = make_lines(20)
    good, bad = tmp_path / "good", tmp_path / "bad"
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, settings=SETTINGS) as running:
            client = running.client()
            wait_for(client, submit(client, content).id)
            await backend.set_script(Script(answer=HELD))
            wait_for(client, submit(client, content).id, "in_progress")
            backed_up(running, good)

    def checked_after(change: Any) -> str:
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        change()
        checked = command.run(["backup", "--verify", str(bad)])
        assert checked.returncode in (1, 2)
        return checked.stderr

    def blob(kind: BlobKind) -> Path:
        return next((bad / "blobs" / kind.value).iterdir())

    def flip(path: Path, at: int) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    assert "other bytes" in checked_after(lambda: flip(blob(BlobKind.SEGMENT), 30))
    assert "other bytes" in checked_after(lambda: os.truncate(blob(BlobKind.SEGMENT), 30))
    assert "other bytes" in checked_after(lambda: forge_partial(bad))
    assert "No such file" in checked_after(lambda: blob(BlobKind.INPUT).unlink())
    assert "its row says" in checked_after(lambda: os.truncate(blob(BlobKind.INPUT), 30))
    assert "plan" in checked_after(lambda: flip(blob(BlobKind.PLAN), 7))
    assert "no finished copy" in checked_after(lambda: (bad / "backup.json").unlink())
    assert "newer Batchline" in checked_after(
        lambda: (bad / "format").write_text(f"{FORMAT + 1}\n")
    )
    assert "newer Batchline" in checked_after(lambda: forge_schema(bad, "9999"))
    assert "database" in checked_after(lambda: os.truncate(bad / "batchline.sqlite3", 5000))


def forge_partial(data: Path) -> None:
    """Have the database expect other bytes of what came of a line that was cut off."""
    with closing(sqlite3.connect(data / "batchline.sqlite3")) as database, database:
        database.execute(
            "INSERT INTO partial_commit (batch_sequence, blob_name, start, stop, crc)"
            " SELECT batch.sequence, blob_name, start, stop, 0 FROM file_range, batch LIMIT 1"
        )


def forge_schema(data: Path, version: str) -> None:
    """Have the database say that a newer program wrote it."""
    with closing(sqlite3.connect(data / "batchline.sqlite3")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))

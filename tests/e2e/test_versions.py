"""Versions that do not fit: a directory of a newer program, and a program upgraded in place."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import batchline
from batchline.cli.data_directory import FORMAT
from batchline.executor.protocol import PROTOCOL
from batchline.store.schema import HEAD
from tests.support import command
from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import ServerProcess, conserved, server, submit, wait_for
from tests.unit.test_docs_operations import first_cells

LINES = 100
OLD, NEW = batchline.__version__, "9.9.9"


def contents(root: Path) -> dict[str, str]:
    """Every file below `root`, by its bytes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def forge_schema(data: Path, version: str) -> None:
    with closing(sqlite3.connect(data / "batchline.sqlite3")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))


@pytest.mark.parametrize("what", ["schema", "format", "damaged format"])
async def test_a_directory_of_a_newer_batchline_is_refused_and_left_alone(
    tmp_path: Path, what: str
) -> None:
    with server(tmp_path, "http://127.0.0.1:9") as running:
        running.client().files.create(file=("a", make_lines(5)), purpose="batch")
        (running.data / "blobs" / "scratch" / "left").touch()  # what a start would sweep
        running.kill_all()
        match what:
            case "schema":
                forge_schema(running.data, "9999")
            case "format":
                (running.data / "format").write_text(f"{FORMAT + 1}\n")
            case _:
                (running.data / "format").write_text("one\n")
        before = contents(running.data)
        said = f"{running.data} was written by a newer Batchline"
        if what == "schema":
            said = f"schema 9999, this one knows up to {HEAD}"
        if what == "damaged format":
            said = "is damaged"
        running.start(wait=False)
        assert running.wait_ended() == 2
        assert said in running.tail()
        for words in (["keys", "list"], ["backup", str(tmp_path / "copy")]):
            refused = running.command(*words)
            assert refused.returncode == 2, words
            assert said in refused.stderr
        assert contents(running.data) == before


async def test_a_directory_of_before_the_note_is_taken_for_what_it_is(tmp_path: Path) -> None:
    with server(tmp_path, "http://127.0.0.1:9") as running:
        assert running.terminate() == 0
        (running.data / "format").unlink()
        running.start()
        assert (running.data / "format").read_text() == f"{FORMAT}\n"
        # And all that lies there while a server works is on the page.
        beside = {"batchline.sqlite3-wal", "batchline.sqlite3-shm"}
        found = {path.name for path in running.data.iterdir()} - beside
        # Only while an input is being validated, and once a backend was drained.
        assert found | {"validating.json", "drained.json"} == set(first_cells("The data directory"))


async def test_a_run_of_a_newer_batchline_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(make_lines(5))
    private = tmp_path / ".out.jsonl.batchline"
    private.mkdir()
    (private / "format").write_text(f"{FORMAT + 1}\n")
    words = ["run", str(source), "--output", str(tmp_path / "out.jsonl")]
    ran = command.run([*words, "--upstream", "http://127.0.0.1:9"])
    assert ran.returncode == 2
    assert "newer Batchline" in ran.stderr


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of the program of its own, which can be upgraded under a running server."""
    site = tmp_path / "site"
    shutil.copytree(Path(batchline.__file__).parent, site / "batchline")
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site / "batchline"


def upgrade(installed: Path) -> None:
    init = installed / "__init__.py"
    old = init.read_text()
    init.write_text(old.replace(f'"{batchline.__version__}"', f'"{NEW}"'))
    assert init.read_text() != old


@pytest.mark.timeout(90)  # starts from a shell, twice, without compiled modules the second time
async def test_children_of_an_upgraded_program_are_refused_until_the_server_is_restarted(
    tmp_path: Path, installed: Path
) -> None:
    """What runs goes on; what would need a new child waits, and readiness says for what."""
    first, second = make_lines(LINES), make_lines(LINES, start=LINES)
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, fork=False) as running:
            client = running.client()
            batch = submit(client, first)
            await backend.wait_until(min_held=64)
            upgrade(installed)
            for child in set(running.children()) - set(running.workers()):
                os.kill(child, signal.SIGKILL)
            later = submit(client, second)
            said = wait_refused(running)
            theirs, ours = (PROTOCOL.replace(OLD, version) for version in (NEW, OLD))
            (reason,) = said
            assert reason.endswith("restart the server.")
            assert f"({theirs}) is not the one that runs ({ours})" in reason
            assert client.batches.retrieve(later.id).status == "validating"  # and not failed
            assert client.batches.retrieve(batch.id).status == "in_progress"

            running.signal_workers(signal.SIGKILL)
            wait_said(running, "worker_of_another_version_refused")
            assert running.tail().count("job_of_another_version_refused") == 1
            sent = (await backend.stats()).arrivals
            running.kill_all()
            await backend.stop_holding()
            assert (await backend.stats()).arrivals == sent

            running.start()  # of the new version
            client = running.client()
            for one, content in ((batch, first), (later, second)):
                over = wait_for(client, one.id)
                assert conserved(client, over, content).finished == LINES


def wait_refused(running: ServerProcess) -> Any:
    body = running.wait_readiness(lambda body: body["status"] != "ready", timeout_s=20)
    return body["reasons"]


def wait_said(running: ServerProcess, event: str) -> None:
    deadline = time.monotonic() + 20
    while event not in running.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)

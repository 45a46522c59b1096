"""Disks that fail, are slow or become read-only under a running server, and get well again.

The errors are the kernel's as far as our processes can tell: strace has the calls fail. (To remount
a file system read-only is no way: the kernel refuses while a file on it is open for writing.)
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import openai
import pytest
from openai.types import Batch, FileObject

from batchline.store.engine import BUSY_S
from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import ServerProcess, conserved, server, submit, wait_for
from tests.support.small_disk import mounted_disk
from tests.support.stored import wait_until_rows_and_bytes_agree
from tests.support.strace import SYNCS, Trace, tampered

LINES: Final = 40
HELD: Final = Script(answer=Answer(hold=True))
SETTINGS: Final[dict[str, Any]] = {
    "cancel": {"grace_s": 0.0},
    "disk": {"reserve_bytes": 4096},
    "worker": {"segment_idle_s": 0.2},
    "retention": {"sweep_s": 0.2},
}

# What changes a disk, but for `write` and `openat`, which also go elsewhere: what they did not do,
# a sync or a rename then does not.
CHANGES: Final = (*SYNCS, "pwrite64", "ftruncate", "rename", "unlink", "unlinkat", "mkdir")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sick:
    """Whose calls fail how.

    `shown` is what readiness says of the disk then, `said` are words of the log, `then` those after
    a caller has asked for more. `unremoved`: files that nobody needs stay until the next start.
    """

    of: Callable[[ServerProcess], Sequence[int]]
    names: Sequence[str]
    how: str
    shown: str = "ok"
    said: Sequence[str] = ()
    then: Sequence[str] = ()
    unremoved: bool = False


def everyone(running: ServerProcess) -> list[int]:
    return [running.pid, *running.children()]


SICKNESSES: Final = {
    "segment": Sick(
        of=ServerProcess.workers,
        names=["fdatasync"],
        how="error=EIO",
        shown="segment_unwritable: EIO",
    ),
    "segment-folder": Sick(
        of=ServerProcess.workers,
        names=["fsync"],
        how="error=EIO",
        shown="segment_unwritable: EIO",
    ),
    "database": Sick(
        of=lambda running: [running.pid],
        names=["fdatasync"],
        how="error=EIO",
        said=["commit_delayed"],
    ),
    "blob": Sick(
        of=lambda running: [pid for pid in everyone(running) if pid not in running.workers()],
        names=["fsync"],
        how="error=EIO",
        then=["batch_delayed", "finalize_delayed"],
    ),
    "read-only": Sick(
        of=everyone,
        names=CHANGES,
        how="error=EROFS",
        shown="segment_unwritable: EROFS",
        unremoved=True,
    ),
    "slow": Sick(of=everyone, names=SYNCS, how="delay_enter=300000"),
}


@pytest.mark.parametrize("sickness", SICKNESSES)
async def test_a_disk_that_is_sick_for_a_while_loses_nothing_and_leaves_nothing_stuck(
    tmp_path: Path, sickness: str
) -> None:
    """Answers come, a batch is cancelled, one is created and a file uploaded meanwhile."""
    sick = SICKNESSES[sickness]
    content = make_lines(LINES)
    # Half of the batch that is cancelled has been answered then, the other half never will be.
    to_cancel = make_lines(
        LINES, start=1_000, markers=lambda number: "[[fault=silent]]" * (number % 2)
    )
    async with backend_process(HELD) as backend:
        upstream = {"base_url": backend.base_url, "max_in_flight": 2 * LINES}
        with server(tmp_path, settings={**SETTINGS, "backend": [upstream]}) as running:
            client = running.client()
            one, other = submit(client, content), submit(client, to_cancel)
            spare = client.files.create(
                file=("spare.jsonl", make_lines(5, start=2_000)), purpose="batch"
            )
            await backend.wait_until(in_flight=2 * LINES)
            with tampered(sick.of(running), tmp_path, sick.names, how=sick.how) as trace:
                await backend.stop_holding()
                running.wait_readiness(lambda body: body["disk"]["state"] == sick.shown)
                for words in sick.said:
                    running.wait_log(words)
                asked = _ask(client, spare.id, other.id)
                for words in sick.then:
                    running.wait_log(words)
            assert _hit(trace)

            if "cancel" not in asked:
                client.batches.cancel(other.id)
            ended, cancelled = wait_for(client, one.id), wait_for(client, other.id, "cancelled")
            log = await backend.log()
            assert ended.status == "completed"
            assert conserved(client, ended, content, log).resent == 0
            assert conserved(client, cancelled, to_cancel, log).cancelled >= LINES // 2
            if "create" in asked:
                assert wait_for(client, asked["create"]).status == "completed"
            # What was refused has left nothing.
            assert len(list(client.batches.list())) == 2 + ("create" in asked)
            inputs = [file for file in client.files.list() if file.purpose == "batch"]
            assert len(inputs) == 3 + ("upload" in asked)
            assert running.wait_readiness(lambda body: body["disk"]["state"] == "ok")
            if sick.unremoved:
                running.terminate()
                running.start()
            wait_until_rows_and_bytes_agree(running.data)


def _ask(client: openai.OpenAI, spare_id: str, other_id: str) -> dict[str, str]:
    """All that a caller can ask of a sick disk; the ids in the answers that said yes."""
    asks: dict[str, Callable[[], FileObject | Batch]] = {
        "cancel": lambda: client.batches.cancel(other_id),
        "upload": lambda: client.files.create(
            file=("new.jsonl", make_lines(5, start=3_000)), purpose="batch"
        ),
        "create": lambda: client.batches.create(
            input_file_id=spare_id, endpoint="/v1/chat/completions", completion_window="24h"
        ),
    }
    asked, refused = {}, []
    for what, ask in asks.items():
        try:
            asked[what] = ask().id
        except openai.APIStatusError as exc:
            refused.append((exc.status_code, exc.response.headers.get("retry-after", "")))
    assert all(status == 503 and int(after) >= 1 for status, after in refused), refused
    return asked


def _hit(trace: Trace) -> bool:
    """Whether any call was tampered with."""
    text = trace.path.read_text()
    return "(INJECTED)" in text or "(DELAYED)" in text


def test_what_was_refused_because_a_sync_failed_is_not_there_after_a_kill_either(
    tmp_path: Path,
) -> None:
    with server(tmp_path, "http://127.0.0.1:9") as running:
        client = running.client()
        file = client.files.create(file=("in.jsonl", make_lines(3)), purpose="batch")
        with tampered([running.pid], tmp_path, ["fdatasync"], how="error=EIO"):
            with pytest.raises(openai.APIStatusError) as refused:
                client.batches.create(
                    input_file_id=file.id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                )
            assert refused.value.status_code == 503
            running.kill_all()
        running.start()
        assert list(running.client().batches.list()) == []


async def test_a_database_that_somebody_locks_for_long_delays_and_refuses_but_loses_nothing(
    tmp_path: Path,
) -> None:
    content = make_lines(LINES)
    async with backend_process(HELD) as backend:
        upstream = {"base_url": backend.base_url, "max_in_flight": 2 * LINES}
        with server(tmp_path, settings={"backend": [upstream]}) as running:
            client = running.client(timeout_s=4 * BUSY_S)
            one, other = submit(client, content), submit(client, make_lines(LINES, start=1_000))
            await backend.wait_until(in_flight=2 * LINES)
            with (
                ThreadPoolExecutor(2) as callers,
                closing(sqlite3.connect(running.data / "batchline.sqlite3")) as somebody,
            ):
                somebody.execute("BEGIN IMMEDIATE")
                # First in the queue: it waits for as long as the server waits for a lock.
                create = callers.submit(
                    client.batches.create,
                    input_file_id=one.input_file_id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                )
                assert running.readiness()["status"] == "ready"
                await backend.stop_holding()
                with pytest.raises(openai.APIStatusError) as refused:
                    await anyio.to_thread.run_sync(create.result)
                assert refused.value.status_code == 503
                assert int(refused.value.response.headers["retry-after"]) >= 1
                unready = running.wait_readiness(lambda body: body["status"] == "unready")
                assert "database" in unready["error"]["message"]
                # Behind the commit of what was answered, which waits as well.
                cancel = callers.submit(client.batches.cancel, other.id)
                somebody.execute("ROLLBACK")
                assert (await anyio.to_thread.run_sync(cancel.result)).id == other.id
            log = await backend.log()
            ended = wait_for(client, one.id)
            assert ended.status == "completed"
            assert running.wait_readiness(lambda body: body["status"] == "ready")
            assert conserved(client, ended, content, log).resent == 0
            assert wait_for(client, other.id).status == "cancelled"
            assert len(list(client.batches.list())) == 2


def test_a_start_on_a_read_only_disk_says_so(tmp_path: Path) -> None:
    with mounted_disk(tmp_path / "data", mib=1) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)  # noqa: S607  # where it is differs between systems
        with server(tmp_path, "http://127.0.0.1:9", start=False) as running:
            running.start(wait=False)
            assert running.wait_ended() == 2
            assert f"data directory {disk}: Read-only file system" in running.tail()

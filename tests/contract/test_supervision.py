"""Workers kept alive by supervision: small programs that say what one tells them to, and end.

What real workers do under it is in `test_local_executor.py`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from batchline.domain.ids import BatchId, WorkerId
from batchline.domain.model import ShardKey
from batchline.executor import messages as m
from batchline.executor import supervision
from batchline.executor.framing import frame
from batchline.executor.supervision import FAILING_DEATHS, Supervision, SupervisionSettings
from batchline.executor.worker_link import WorkerLink

SOON_S: Final = 30.0
KEY: Final = ShardKey(batch_id=BatchId("batch_1"), number=0)
IN_TURN: Final = m.SegmentClosed | m.InputUnreadable | m.Drained

# Says its words, and then nothing until it is told to drain or the other side is gone.
PROGRAM: Final = """
import socket, sys
peer = socket.socket(fileno=int(sys.argv[3]))
peer.sendall(bytes.fromhex(sys.argv[1]))
heard = b""
while sys.argv[2:3] == ["--fd"] and b"Drain" not in heard:
    piece = peer.recv(65536)
    if not piece:
        break
    heard += piece
"""


def saying(*words: m.ToControl) -> list[str]:
    """The command of a worker that says these words and lives on."""
    said = b"".join(map(frame, words)).hex()
    return [sys.executable, "-I", "-S", "-c", PROGRAM, said]


def ending_after(*words: m.ToControl) -> list[str]:
    """The command of a worker that says these words and ends."""
    program = PROGRAM.partition("heard = ")[0]
    said = b"".join(map(frame, words)).hex()
    return [sys.executable, "-I", "-S", "-c", program, said]


HELLO: Final = m.Hello(pid=1)


@dataclass(slots=True)
class Recorder:
    """Who has the workers: what it was told, in order. `answer` to what comes in its turn."""

    answer: Callable[[WorkerLink], Awaitable[object]]
    first: list[bool] = field(default_factory=list)
    told: list[tuple[WorkerId, object]] = field(default_factory=list)
    lost: list[WorkerLink] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def greet(self, link: WorkerLink, first: bool) -> None:
        self.first.append(first)
        self._tell(link, "greet")

    def heard(self, link: WorkerLink, message: m.ToControl) -> bool:
        if isinstance(message, IN_TURN):
            return False
        self._tell(link, message)
        return True

    async def heard_in_turn(self, link: WorkerLink, message: m.ToControl) -> None:
        await self.answer(link)
        self._tell(link, message)

    async def on_lost(self, link: WorkerLink) -> None:
        self.lost.append(link)
        self._tell(link, "lost")

    def _tell(self, link: WorkerLink, what: object) -> None:
        self.told.append((link.worker, what))
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


async def soon(link: WorkerLink) -> None:  # one of several answers
    await asyncio.sleep(0)


async def refused(link: WorkerLink) -> None:
    raise OSError(f"no answer to {link.worker}")


async def after_its_end(link: WorkerLink) -> None:
    """As of a store that takes its time."""
    await link.gone.wait()


@asynccontextmanager
async def supervised(
    directory: Path,
    command: Sequence[str],
    *,
    workers: int = 1,
    silent_s: float = 600.0,
    answer: Callable[[WorkerLink], Awaitable[object]] = soon,
) -> AsyncIterator[tuple[Supervision, Recorder]]:
    recorder = Recorder(answer)
    it = Supervision(
        SupervisionSettings(
            workers=workers,
            command=command,
            children=directory,
            worker_prefix="w",
            silent_s=silent_s,
        ),
        greet=recorder.greet,
        heard=recorder.heard,
        heard_in_turn=recorder.heard_in_turn,
        lost=recorder.on_lost,
    )
    try:
        async with asyncio.timeout(SOON_S):
            await it.start()
        yield it, recorder
    finally:
        await it.drain(grace_s=0)
        assert not it.links


async def test_after_the_start_every_worker_is_ready_and_was_greeted_as_one_of_the_first(
    tmp_path: Path,
) -> None:
    async with supervised(tmp_path, saying(HELLO), workers=2) as (it, recorder):
        assert it.ready_workers == 2
        assert sorted(it.links) == ["w-0-1", "w-1-2"]
        assert recorder.first == [True, True]
        assert it.failing is None


async def test_what_a_worker_said_before_its_end_is_dealt_with_before_it_is_lost_and_followed(
    tmp_path: Path,
) -> None:
    words = (HELLO, m.SegmentClosed(), m.Handed(KEY), m.Drained())
    command = ending_after(*words)
    async with supervised(tmp_path, command, answer=after_its_end) as (_, recorder):
        await recorder.until(lambda: ("w-0-2", "lost") in recorder.told)
        told = recorder.told[: [what for _, what in recorder.told].index("lost") + 1]
        assert {worker for worker, _ in told} == {"w-0-1"}
        at_once = [what for _, what in told if isinstance(what, m.Hello | m.Handed)]
        in_turn = [what for _, what in told if isinstance(what, IN_TURN)]
        assert (at_once, in_turn) == ([HELLO, words[2]], [words[1], words[3]])
        assert recorder.first[:2] == [True, False]
        assert [link.gone.is_set() for link in recorder.lost] == [True] * len(recorder.lost)


async def test_a_worker_that_nobody_answers_any_more_is_killed(tmp_path: Path) -> None:
    command = saying(HELLO, m.SegmentClosed())
    async with supervised(tmp_path, command, answer=refused) as (_, recorder):
        await recorder.until(lambda: ("w-0-2", HELLO) in recorder.told)
        assert recorder.lost[0].gone.is_set()


async def test_workers_that_die_before_their_hello_end_the_start_and_are_reported(
    tmp_path: Path,
) -> None:
    async with supervised(tmp_path, ending_after(), workers=FAILING_DEATHS) as (it, _):
        assert it.failing == f"workers died at start {FAILING_DEATHS} times in a row"
        assert it.ready_workers == 0


async def test_one_hello_ends_the_report_of_failing(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit(1)")
    hello = frame(HELLO).hex()
    command = [sys.executable, "-I", "-S", str(script), hello]
    async with supervised(tmp_path, command, workers=FAILING_DEATHS) as (it, recorder):
        assert it.failing is not None
        script.write_text(PROGRAM)
        await recorder.until(lambda: any(what == HELLO for _, what in recorder.told))
        assert it.failing is None


async def test_a_worker_of_another_version_is_not_heard_and_the_version_is_reported(
    tmp_path: Path,
) -> None:
    theirs = m.Hello(pid=1, protocol="0.0/0")
    async with supervised(tmp_path, saying(theirs), workers=FAILING_DEATHS) as (it, recorder):
        assert it.failing is not None
        assert "0.0/0" in it.failing
        assert {what for _, what in recorder.told} <= {"greet", "lost"}


async def test_a_worker_that_falls_silent_is_killed_and_followed(tmp_path: Path) -> None:
    async with supervised(tmp_path, saying(HELLO), silent_s=0.1) as (it, recorder):
        await recorder.until(lambda: len(recorder.lost) >= 1)
        assert recorder.lost[0].gone.is_set()
        await recorder.until(lambda: ("w-0-2", HELLO) in recorder.told)
        assert it.failing is None


async def test_a_worker_that_starts_may_be_silent_for_longer(tmp_path: Path) -> None:
    """For a second here: ten times what is allowed to one that has said hello."""
    command = saying(HELLO)
    command[4] = f"import time; time.sleep(1.0){PROGRAM}"
    async with supervised(tmp_path, command, silent_s=0.1) as (_, recorder):
        assert recorder.told[1] == ("w-0-1", HELLO)


async def test_a_worker_that_never_says_hello_is_killed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "START_S", 0.1)
    async with supervised(tmp_path, saying(), workers=FAILING_DEATHS, silent_s=0.1) as (it, _):
        assert it.failing is not None


# -- quarantine ------------------------------------------------------------------------------------


async def test_the_worker_in_quarantine_is_one_more_and_is_followed_while_it_is_wanted(
    tmp_path: Path,
) -> None:
    async with supervised(tmp_path, saying(HELLO)) as (it, recorder):
        it.set_quarantine(True)
        it.set_quarantine(True)
        await recorder.until(lambda: ("w-q-2", HELLO) in recorder.told)
        assert recorder.first == [True, False]
        assert (len(it.links), it.ready_workers) == (2, 1)
        it.links[WorkerId("w-q-2")].kill()
        await recorder.until(lambda: ("w-q-3", HELLO) in recorder.told)
        assert recorder.lost[0].quarantine

        it.set_quarantine(False)
        await recorder.until(lambda: ("w-q-3", "lost") in recorder.told)
        assert sorted(it.links) == ["w-0-1"]
        it.set_quarantine(True)
        await recorder.until(lambda: ("w-q-4", HELLO) in recorder.told)


async def test_a_quarantine_that_is_not_wanted_any_more_ends_the_worker_that_is_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervised(tmp_path, saying(HELLO)) as (it, recorder):
        while_starting(monkeypatch, lambda: it.set_quarantine(False))
        it.set_quarantine(True)
        await recorder.until(lambda: ("w-q-2", "lost") in recorder.told)
        assert sorted(it.links) == ["w-0-1"]


# -- drain -----------------------------------------------------------------------------------------


async def test_a_drain_tells_every_worker_and_waits_until_they_have_ended_by_themselves(
    tmp_path: Path,
) -> None:
    async with supervised(tmp_path, saying(HELLO), workers=2) as (it, recorder):
        it.set_quarantine(True)
        await recorder.until(lambda: it.ready_workers == 2 and len(it.links) == 3)
        async with asyncio.timeout(SOON_S):
            await it.drain(grace_s=600.0)
        assert len(recorder.lost) == 3
        assert not it.links


async def test_a_drain_kills_who_does_not_end(tmp_path: Path) -> None:
    command = saying(HELLO)
    command[4] = PROGRAM.replace("Drain", "Never")
    async with supervised(tmp_path, command) as (it, recorder):
        (link,) = it.links.values()
        async with asyncio.timeout(SOON_S):
            await it.drain(grace_s=0.0)
        assert recorder.lost == [link]
        assert link.gone.is_set()


async def test_a_drain_ends_although_a_worker_is_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draining: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()
    async with supervised(tmp_path, saying(HELLO)) as (it, _):
        (link,) = it.links.values()

        def drain() -> None:
            draining.set_result(asyncio.create_task(it.drain(grace_s=0)))

        while_starting(monkeypatch, drain)
        link.kill()
        async with asyncio.timeout(SOON_S):
            await (await draining)
        assert not it.links


def while_starting(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """From now on this happens while a worker is being started: its process runs, and nobody knows
    of it yet."""
    start = WorkerLink.start

    async def start_and_more(*arguments: Any, **named: Any) -> WorkerLink:
        link = await start(*arguments, **named)
        happens()
        await asyncio.sleep(0)  # it has looked around
        return link

    monkeypatch.setattr(WorkerLink, "start", start_and_more)

"""Lines that share a prefix meet at one backend, which has it in its cache then; through a kill.

What is asserted is in the logs of three real backends with equal weights. Backends hold their
answers, so that nobody is faster than another and takes over what is not his.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from batchline.domain.model import Endpoint
from tests.support.inputs import MODEL
from tests.support.scripted_backend import (
    Answer,
    BackendLog,
    Script,
    backend_process,
    read_log,
)
from tests.support.server import conserved, server, submit, wait_for

NAMES: Final = ("gpu-a", "gpu-b", "gpu-c")
GROUPS: Final = 30
LINES: Final = 20 * GROUPS  # one shard
PERMITS: Final = 8
WAVES: Final = 8
HOLDING: Final = Script(answer=Answer(hold=True))


def line(number: int) -> str:
    """Line n is of group n modulo GROUPS: neighbours in the file share nothing."""
    document = f"<document {number % GROUPS}>" * 100
    text = f"{document} [[id=line-{number:07d}]]"
    return json.dumps(
        {
            "custom_id": f"line-{number:07d}",
            "method": "POST",
            "url": Endpoint.CHAT_COMPLETIONS,
            "body": {"model": MODEL, "messages": [{"role": "user", "content": text}]},
        }
    )


CONTENT: Final = "\n".join(map(line, range(LINES))).encode()


def groups_in(log: BackendLog) -> set[int]:
    return {int(event.id.removeprefix("line-")) % GROUPS for event in log.arrivals}


def shared(groups: Iterable[set[int]]) -> int:
    """How many times a group came to one more backend than it had to."""
    each = list(groups)
    return sum(map(len, each)) - len(set().union(*each))


async def test_each_group_goes_to_one_backend_and_on_when_that_is_killed(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        logs = {name: tmp_path / f"{name}.jsonl" for name in NAMES}
        backends = {
            name: await stack.enter_async_context(backend_process(HOLDING, log=log))
            for name, log in logs.items()
        }
        settings: dict[str, object] = {
            "retry": {"max_attempts": 1},
            "backend": [
                {"name": name, "base_url": one.base_url, "max_in_flight": PERMITS}
                for name, one in backends.items()
            ],
        }
        running = stack.enter_context(server(tmp_path, settings=settings))
        client = running.client()
        batch = submit(client, CONTENT)
        for wave in range(1, WAVES + 1):
            for one in backends.values():
                await one.wait_until(min_held=PERMITS, min_arrivals=wave * PERMITS)
            if wave < WAVES:
                for one in backends.values():
                    assert await one.release() == PERMITS
        begun = {name: groups_in(read_log(log)) for name, log in logs.items()}
        # By room alone every backend would have lines of every group by now.
        assert shared(begun.values()) == 0
        assert all(len(groups) <= 1 + WAVES * PERMITS / 20 for groups in begun.values())

        dead, *others = NAMES
        pid = backends[dead].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for name in others:
            await backends[name].set_script(Script())
            await backends[name].stop_holding()
        ended = wait_for(client, batch.id)
        all_logs = {name: read_log(log) for name, log in logs.items()}
        together = BackendLog([event for log in all_logs.values() for event in log.events])
        summary = conserved(client, ended, CONTENT, together)
        assert (summary.finished, summary.failed, summary.resent) == (LINES, 0, PERMITS)
        assert groups_in(all_logs[dead]) == begun[dead]
        went_to = {name: groups_in(all_logs[name]) for name in others}
        assert set().union(begun[dead], *went_to.values()) == set(range(GROUPS))
        # What the dead one was at is gone on with, at both where it comes so; else a group is at
        # two backends only where one of them had nothing else left to do: at the very end.
        assert shared(went_to.values()) <= len(begun[dead]) + 2

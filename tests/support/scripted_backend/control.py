"""The tests' side of the backend: start it here or as a process, tell it what to do, ask it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import anyio
import msgspec

from tests.support import forked
from tests.support.scripted_backend.script import Script
from tests.support.scripted_backend.server import HOST, Release, Server
from tests.support.scripted_backend.witness import BackendLog, Stats, Wanted, parse_log

STOP_S: Final = 10.0
WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendControl:
    """Remote control of a running backend. `url` is without `/v1`; `pid` is None for one here."""

    url: str
    control_url: str
    session: aiohttp.ClientSession
    pid: int | None = None

    @property
    def base_url(self) -> str:
        """What `--upstream` and OpenAI clients take."""
        return f"{self.url}/v1"

    async def set_script(self, script: Script) -> None:
        """Follow this from the next request on; each id's plan starts at its first answer."""
        await self._post("script", script)

    async def release(self, *ids: str) -> int:
        """Give the answers held for these ids, without ids all; how many were held."""
        answer = await self._post("release", Release(list(ids) or None))
        return int(json.loads(answer)["released"])

    async def stop_holding(self) -> int:
        """Give all held answers and hold none from now on, until the next `set_script`."""
        return int(json.loads(await self._post("stop_holding"))["released"])

    async def go_down(self) -> None:
        """Refuse connections, reset the open ones. The port stays reserved."""
        await self._post("down")

    async def come_up(self) -> None:
        """Listen on the same port again."""
        await self._post("up")

    async def clear(self) -> None:
        """Forget what was seen so far."""
        await self._post("clear")

    async def caught_up(self) -> float:
        """Have everything read that was sent until now; the instant after that (`time.time()`).

        A busy backend stamps a request when it reads it, up to 80 ms after it came. It accepts
        connections in order and reads them in order (on one port), so one more round trip will do.
        """
        async with self.session.get(f"{self.base_url}/models") as answer:
            await answer.read()
        return time.time()

    async def stats(self) -> Stats:
        async with self.session.get(f"{self.control_url}/_control/stats") as answer:
            return msgspec.json.decode(await answer.read(), type=Stats)

    async def log(self) -> BackendLog:
        """Everything seen since the start or the last `clear`."""
        async with self.session.get(f"{self.control_url}/_control/log") as answer:
            return parse_log((await answer.read()).splitlines())

    async def wait_for_arrivals(self, count: int, *, timeout_s: float = WAIT_S) -> Stats:
        """Wait until `count` requests have been read whole, and return the counts of then."""
        return await self.wait_until(min_arrivals=count, timeout_s=timeout_s)

    async def wait_until(
        self,
        *,
        in_flight: int | None = None,
        min_in_flight: int = 0,
        min_arrivals: int = 0,
        min_answered: int = 0,
        min_aborted: int = 0,
        min_called_off: int = 0,
        min_dropped: int = 0,
        min_broken_off: int = 0,
        min_held: int = 0,
        min_catalogue_calls: int = 0,
        timeout_s: float = WAIT_S,
    ) -> Stats:
        """Wait until all of these hold at once, and return the counts of just after.

        Raises:
            TimeoutError: they did not within `timeout_s`; the message has the counts.
        """
        wanted = Wanted(
            in_flight=in_flight,
            min_in_flight=min_in_flight,
            min_arrivals=min_arrivals,
            min_answered=min_answered,
            min_aborted=min_aborted,
            min_called_off=min_called_off,
            min_dropped=min_dropped,
            min_broken_off=min_broken_off,
            min_held=min_held,
            min_catalogue_calls=min_catalogue_calls,
            timeout_s=timeout_s,
        )
        async with self.session.post(
            f"{self.control_url}/_control/wait", data=msgspec.json.encode(wanted)
        ) as answer:
            stats = msgspec.json.decode(await answer.read(), type=Stats)
            if answer.status != 200:
                raise TimeoutError(f"wanted {wanted} in {timeout_s} s, there is {stats}")
            return stats

    async def _post(self, route: str, value: object = None) -> bytes:
        async with self.session.post(
            f"{self.control_url}/_control/{route}", data=msgspec.json.encode(value)
        ) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{route}: {answer.status} {body!r}")
            return body


@asynccontextmanager
async def backend_here(
    script: Script | None = None, *, log: Path | None = None
) -> AsyncIterator[BackendControl]:
    """A backend on the running loop for the length of the block."""
    sink = None if log is None else log.open("ab")  # a local file, opened once
    server = Server(script or Script(), log=sink)
    await server.start()
    try:
        async with _session() as session:
            yield BackendControl(
                url=f"http://{HOST}:{server.port}",
                control_url=f"http://{HOST}:{server.control_port}",
                session=session,
            )
    finally:
        await server.stop()
        if sink is not None:
            sink.close()


@asynccontextmanager
async def backend_process(
    script: Script | None = None, *, log: Path | None = None, port: int = 0
) -> AsyncIterator[BackendControl]:
    """A backend in a process of its own: it outlives every kill of what it serves.

    It ends with the block, and also when the test run is killed. `port` is for one that comes back
    where another was.
    """
    arguments = ["--until-stdin-closes", "--port", str(port)]
    arguments += ["--script", msgspec.json.encode(script or Script()).decode()]
    if log is not None:
        arguments += ["--log", str(log)]
    (its_stdin, stdin), (stdout, its_stdout) = os.pipe(), os.pipe()
    process = forked.start(
        "scripted_backend", arguments, stdin=its_stdin, stdout=its_stdout, stderr=2
    )
    for file in (its_stdin, its_stdout):
        os.close(file)
    said_file = os.fdopen(stdout, "rb")
    try:
        said = await anyio.to_thread.run_sync(said_file.readline)
        if not said:
            raise RuntimeError("the scripted backend did not start; see its traceback above")
        address = json.loads(said)
        async with _session() as session:
            yield BackendControl(
                url=address["url"],
                control_url=address["control_url"],
                session=session,
                pid=process.pid,
            )
    finally:
        os.close(stdin)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        said_file.close()


def _session() -> aiohttp.ClientSession:
    # Waits have their own deadline at the server, so this one only catches a dead backend.
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=180))

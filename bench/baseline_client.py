"""The baseline of dispatch: a bare aiohttp loop that sends the same bodies and keeps nothing.

`python -m bench.baseline_client URL INPUT IN_FLIGHT`. Bodies are in memory before the clock starts;
each of IN_FLIGHT tasks sends the next one, reads the answer and forgets it. The session is tuned
as far as aiohttp's documentation goes: no cookies, no decompression, no limit to ask for, no
timeouts, headers spelled out. Nothing is parsed, retried, counted by line or written.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from bench.inputs import bodies


class Ran(msgspec.Struct, frozen=True):
    """One pass over the input; the times are of the loop alone, start-up left out."""

    lines: int
    bad: int
    wall_s: float
    cpu_s: float


async def run(url: str, requests: list[bytes], in_flight: int) -> Ran:
    """Send every request once, `in_flight` at a time."""
    bad = 0
    todo: Iterator[bytes] = iter(requests)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}

    async def send_on(session: aiohttp.ClientSession) -> None:
        nonlocal bad
        for body in todo:
            async with session.post(url, data=body, headers=headers) as response:
                answer = await response.read()
                bad += response.status != 200 or not answer

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=["User-Agent", "Accept-Encoding"],
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(send_on(session) for _ in range(in_flight)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Ran(lines=len(requests), bad=bad, wall_s=wall, cpu_s=cpu)


def main_of(run: Callable[[str, list[bytes], int], Coroutine[None, None, Ran]]) -> None:
    """Run one of the clients as its command line says, and write what it found as JSON."""
    url, path, in_flight = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    requests = list(bodies(path))
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # as in our workers
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(url, requests, in_flight))))


if __name__ == "__main__":
    main_of(run)

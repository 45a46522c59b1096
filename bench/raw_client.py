"""The floor of dispatch: our own plain HTTP client alone, sending the same bodies, keeping nothing.

`python -m bench.raw_client URL INPUT IN_FLIGHT`, as `bench.baseline_client`. What a worker costs
beyond this is what a line costs: reading it, the gate, checking the answer, its output, commits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from batchline.executor.contract import BackendSettings
from batchline.executor.transport.http1 import Http1Transport
from bench.baseline_client import Ran, main_of


async def run(url: str, requests: list[bytes], in_flight: int) -> Ran:
    """Send every request once, `in_flight` at a time."""
    base_url, _, path = url.partition("/v1")
    transport = Http1Transport(BackendSettings(name="raw", base_url=f"{base_url}/v1"))
    bad = 0
    todo: Iterator[bytes] = iter(requests)
    key = "batch_req_0123456789abcdef0123456700000001"

    async def send_on() -> None:
        nonlocal bad
        for body in todo:
            answer = await transport.send(path, body, _admit, key)
            bad += answer.status != 200 or not answer.body

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(send_on() for _ in range(in_flight)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await transport.close()
    return Ran(lines=len(requests), bad=bad, wall_s=wall, cpu_s=cpu)


def _admit() -> bool:
    return True


if __name__ == "__main__":
    main_of(run)

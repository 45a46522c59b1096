"""A crowd before one core: 200 clients that poll and list, two batches, an upload, a slow download.

The server with all its processes has the first core. Whoever asks something of it has the second:
the backend, the clients, this process. What a client waits for is then the server's own work.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from bench.inputs import LINE_BYTES
from bench.pollers import Asked, Order, Polled
from bench.processes import Cores, MemoryMeter, pin
from bench.report import Floor, Measurement, Row, Table, percentile
from bench.rig import DELAY_S, Rig

CLIENTS: Final = 200
EVERY_S: Final = 1.0  # far more impatient than any client that is told to wait for a batch
LINES: Final = 100_000  # of each of the two batches
UPLOAD_LINES: Final = 500_000_000 // LINE_BYTES
DOWNLOAD_BYTES_PER_S: Final = 1_000_000
MOST_MS: Final = 50.0
MOST_GROWTH_MIB: Final = 16.0
_PAGE: Final = 20  # batches that are there before, so that a page is full from the start
_SATURATED_S: Final = 10.0
_CHUNK_BYTES: Final = 16 * 1024
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crowd:
    """What the clients were told, and what went on beside them. Seconds are monotonic."""

    polled: Polled
    upload_s: tuple[float, float]
    upload_bytes: int
    downloaded_bytes: int
    lines_per_s: float


def measure(rig: Rig) -> Measurement:
    """The clients during all of it, and by themselves as fast as they are answered."""
    lines = rig.size.lines(LINES)
    server_core, other_core = rig.cores.measured, rig.cores.backend
    cores = Cores(measured=server_core, backend=other_core, others=server_core)
    rig.input(rig.size.lines(UPLOAD_LINES))  # made before anything is measured
    with rig.with_fresh_server("crowd", cores=cores) as crowded, _pinned(other_core):
        known = _completed(crowded, _PAGE)
        file_id = crowded.uploaded(lines)
        with MemoryMeter(crowded.server) as memory:
            crowd = _crowd(crowded, file_id, lines)
        alone, alone_s = _saturated(crowded, known)
    asked, errors = crowd.polled.asked, [*crowd.polled.errors, *alone.errors]
    for error in errors[:5]:
        rig.say(f"ERROR: {error}")
    beside = [one for one in asked if crowd.upload_s[0] <= one.due_s <= crowd.upload_s[1]]
    upload_s = crowd.upload_s[1] - crowd.upload_s[0]
    rig.say(
        f"beside the clients: {crowd.lines_per_s:,.0f} lines/s, {crowd.upload_bytes / 1e6:,.0f} MB "
        f"uploaded in {upload_s:.1f} s, {crowd.downloaded_bytes / 1e6:.0f} MB downloaded"
    )
    rows = [
        *_rows("all the time", asked),
        *_rows("during the upload", beside),
        *_rows(f"alone, saturated: {len(alone.asked) / alone_s:,.0f} a second", alone.asked),
    ]
    # All that clients send and fetch goes through this process. Of job children there are two for a
    # moment, since two batches are validated at once.
    grown = memory.peaks["control"] - memory.at_start["control"]
    return Measurement(
        tables=[
            Table(f"{CLIENTS} clients, each every {EVERY_S:g} s, two batches of {lines:,}", rows),
            Table("Anonymous memory of the server", _memory_rows(memory)),
        ],
        floors=[
            *(
                Floor(f"200 clients, p99 of {kind}, ms (worse of both)", worst, at_most=MOST_MS)
                for kind in ("get", "list")
                for worst in [max(_p99(asked, kind), _p99(beside, kind))]
            ),
            Floor("answers to the clients that were not right", len(errors), at_most=0),
            Floor("growth of the control process, MiB", grown / _MIB, at_most=MOST_GROWTH_MIB),
        ],
        raw={
            "lines": lines,
            "upload_s": crowd.upload_s,
            "asked": msgspec.to_builtins(asked),
            "alone_ms": {kind: _took(alone.asked, kind) for kind in ("get", "list")},
            "errors": errors,
            "bytes": {"start": memory.at_start, "peak": memory.peaks, "end": memory.at_end},
        },
    )


# -- the crowd ---------------------------------------------------------------------------------


def _completed(rig: Rig, count: int) -> list[str]:
    """The ids of so many batches of one line that are over."""
    file_id = rig.uploaded(1)
    ids = []
    for _ in range(count):
        ids.append(rig.create(file_id).id)
        rig.wait(ids[-1], "completed", lines=1)
    return ids


def _crowd(rig: Rig, file_id: str, lines: int) -> _Crowd:
    """Everything at once, until both batches are complete and the upload is."""
    rig.backend.reset(DELAY_S)
    over = threading.Event()
    ids = [rig.create(file_id).id for _ in range(2)]
    with ThreadPoolExecutor(2) as threads, _polling(rig, ids, EVERY_S) as process:
        began_s = time.monotonic()
        uploading = threads.submit(_upload, rig)
        downloading = threads.submit(_download, rig, file_id, over)
        try:
            for batch_id in ids:
                rig.wait(batch_id, "completed", lines=2 * lines, poll_s=0.25)
            took_s = time.monotonic() - began_s
            upload_s = uploading.result()
        finally:
            over.set()
        polled = _told(process)
    if rig.backend.stats().answered != 2 * lines:
        raise RuntimeError(f"2 batches of {lines} lines, {rig.backend.stats()}")
    return _Crowd(
        polled=polled,
        upload_s=upload_s,
        upload_bytes=rig.input(rig.size.lines(UPLOAD_LINES)).stat().st_size,
        downloaded_bytes=downloading.result(),
        lines_per_s=2 * lines / took_s,
    )


def _saturated(rig: Rig, batch_ids: Sequence[str]) -> tuple[Polled, float]:
    """The same clients and an idle server, each client again as soon as it is answered; and how
    long that was."""
    with _polling(rig, batch_ids, 0.0) as process:
        began_s = time.monotonic()
        time.sleep(_SATURATED_S * min(1.0, rig.size.percent / 100))
        polled = _told(process)
        return polled, time.monotonic() - began_s


@contextmanager
def _polling(
    rig: Rig, batch_ids: Sequence[str], every_s: float
) -> Iterator[subprocess.Popen[bytes]]:
    """The clients as a process, connected and at work."""
    order = Order(port=rig.port, clients=CLIENTS, every_s=every_s, batch_ids=list(batch_ids))
    with subprocess.Popen(
        [sys.executable, "-m", "bench.pollers", msgspec.json.encode(order).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"polling\n":
            raise RuntimeError("the clients could not connect")
        yield process


def _told(process: subprocess.Popen[bytes]) -> Polled:
    """End the clients; what they were told."""
    output, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the clients ended with {process.returncode}")
    return msgspec.json.decode(output, type=Polled)


def _upload(rig: Rig) -> tuple[float, float]:
    began_s = time.monotonic()
    rig.uploaded(rig.size.lines(UPLOAD_LINES))
    return began_s, time.monotonic()


def _download(rig: Rig, file_id: str, over: threading.Event) -> int:
    """Read a file slowly until `over`, from its start again after its end; the bytes that came.

    Raises:
        RuntimeError: it was refused, or cut short.
    """
    total = 0
    with socket.socket() as small:
        # So that the server waits, and not the kernel's buffers fill.
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK_BYTES)
        small.connect(("127.0.0.1", rig.port))
        connection = http.client.HTTPConnection("127.0.0.1", rig.port)
        connection.sock = small
        while not over.is_set():
            connection.request("GET", f"/v1/files/{file_id}/content")
            response = connection.getresponse()
            while not over.is_set() and (chunk := response.read(_CHUNK_BYTES)):
                total += len(chunk)
                over.wait(_CHUNK_BYTES / DOWNLOAD_BYTES_PER_S)
            if response.status != 200 or (response.length and not over.is_set()):
                raise RuntimeError(
                    f"the download: {response.status}, {response.length} are missing"
                )
    return total


# -- what came of it ---------------------------------------------------------------------------


def _took(asked: Sequence[Asked], kind: str) -> list[float]:
    return [one.took_ms for one in asked if one.kind == kind]


def _p99(asked: Sequence[Asked], kind: str) -> float:
    """Milliseconds; 0 when nobody asked, as in the moment of a tiny upload."""
    took = _took(asked, kind)
    return percentile(took, 99) if took else 0.0


def _rows(when: str, asked: Sequence[Asked]) -> Iterator[Row]:
    for kind in ("get", "list"):
        if took := _took(asked, kind):
            yield {
                "when": when,
                "call": kind,
                "answers": len(took),
                "p50 ms": percentile(took, 50),
                "p99 ms": percentile(took, 99),
                "most ms": max(took),
            }


def _memory_rows(memory: MemoryMeter) -> list[Row]:
    return [
        {
            "process": role,
            "MiB before": memory.at_start[role] / _MIB,
            "peak MiB": memory.peaks[role] / _MIB,
            "MiB after": memory.at_end[role] / _MIB,
        }
        for role in memory.at_start
    ]


@contextmanager
def _pinned(cores: frozenset[int]) -> Iterator[None]:
    """This process, and what it starts in the block, on `cores`."""
    before = os.sched_getaffinity(0)
    pin(os.getpid(), cores)
    try:
        yield
    finally:
        pin(os.getpid(), before)

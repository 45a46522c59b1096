"""Upload: MB/s until the 200, when the bytes are durable, against a plain durable copy."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from bench.processes import CpuMeter
from bench.report import Measurement, Row, Table, spread
from bench.rig import Rig

LINES: Final = 200_000
RUNS: Final = 5
_CHUNK_BYTES: Final = 1024 * 1024
_SYNC_EVERY_BYTES: Final = 8 * 1024 * 1024  # as the server does


def measure(rig: Rig) -> Measurement:
    """Uploads and plain copies in turn."""
    path = rig.input(rig.size.lines(LINES))
    size = path.stat().st_size
    uploads, copies, costs = [], [], []
    for _ in range(rig.size.times(RUNS)):
        copies.append(size / _copy_s(path, rig.work / "copy") / 1e6)
        with rig.api() as api, CpuMeter(rig.server) as meter:
            began = time.perf_counter()
            file_id = api.upload(path)
            uploads.append(size / (time.perf_counter() - began) / 1e6)
        costs.append(meter.spent["control"])
        with rig.api() as api:
            api.call("DELETE", f"/v1/files/{file_id}")
    rows: list[Row] = [
        {"what": "plain durable copy", "MB/s": spread(copies), "wall s": spread(_s(size, copies))},
        {"what": "upload", "MB/s": spread(uploads), "wall s": spread(_s(size, uploads))},
    ]
    cpu: Row = {"process": "control process", "CPU s": spread(costs), "of MB": size / 1e6}
    ratios = [copy / upload for copy, upload in zip(copies, uploads, strict=True)]
    rows[1]["of the copy's time"] = spread(ratios)
    rows[0]["of the copy's time"] = "1"
    return Measurement(
        tables=[Table(f"Upload of {size / 1e6:,.0f} MB", rows), Table("CPU of an upload", [cpu])],
        raw={"bytes": size, "upload_mb_s": uploads, "copy_mb_s": copies, "control_cpu_s": costs},
    )


def _s(size: int, speeds: list[float]) -> list[float]:
    return [size / speed / 1e6 for speed in speeds]


def _copy_s(source: Path, target: Path) -> float:
    """Seconds of a copy that is on disk when it is done, its name included."""
    began = time.perf_counter()
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
        unsynced = 0
        while chunk := read.read(_CHUNK_BYTES):
            unsynced += write.write(chunk)
            if unsynced >= _SYNC_EVERY_BYTES:
                os.fdatasync(write.fileno())
                unsynced = 0
        os.fsync(write.fileno())
    final = target.rename(target.with_suffix(".final"))
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)
    took_s = time.perf_counter() - began
    final.unlink()
    return took_s

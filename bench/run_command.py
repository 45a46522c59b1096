"""`batchline run` against the same job by `batchline serve`, with the same settings, in turn.

Both begin with nothing running and end with the process gone and the results in a file that is on
disk, so that both starts and both ends count. The server's client polls as often as `run` looks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from batchline.cli.run_engine import LOOK_S
from bench.processes import pin
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import DELAY_S, Rig, common_settings
from tests.support.server import is_worker, recorded_children, to_toml

LINES: Final = 200_000
RUNS: Final = 3
MOST_OF_SERVER: Final = 1.05
_POLL_S: Final = 0.01


def measure(rig: Rig) -> Measurement:
    """The server's way and the command's in turn."""
    lines = rig.size.lines(LINES)
    rig.input(lines)
    server_s, run_s = [], []
    for number in range(rig.size.times(RUNS)):
        server_s.append(_by_server(rig, lines, f"by-server-{number}"))
        run_s.append(_by_run(rig, lines, f"by-run-{number}"))
        rig.say(f"run {number + 1}: server {server_s[-1]:.2f} s, run {run_s[-1]:.2f} s")
    ratios = [mine / other for mine, other in zip(run_s, server_s, strict=True)]
    ratio = sorted(ratios)[len(ratios) // 2]
    return Measurement(
        tables=[
            Table(
                f"{lines:,} lines from nothing to a file of results, start and end of the process",
                [
                    _row("serve: upload, create, poll, download", lines, server_s),
                    _row("run", lines, run_s),
                ],
            )
        ],
        floors=[Floor("run / serve, wall time (median)", ratio, at_most=MOST_OF_SERVER)],
        raw={"lines": lines, "server_s": server_s, "run_s": run_s, "ratios": ratios},
    )


def _row(what: str, lines: int, walls: list[float]) -> Row:
    return {
        "what": what,
        "wall s": spread(walls),
        "lines/s": spread([lines / wall_s for wall_s in walls]),
    }


def _by_server(rig: Rig, lines: int, name: str) -> float:
    """Seconds from the start of a server to its end, the results on disk."""
    rig.backend.reset(DELAY_S)
    output = rig.work / f"{name}.jsonl"
    began = time.perf_counter()
    with rig.with_fresh_server(name) as fresh, fresh.api() as api:
        file_id = api.upload(rig.input(lines))
        batch = fresh.create(file_id)
        done = fresh.completed(batch.id, lines, poll_s=LOOK_S)
        with output.open("wb") as file:
            api.download(done["output_file_id"], file)
            file.flush()
            os.fsync(file.fileno())
        fresh.server.terminate()
        took_s = time.perf_counter() - began
    _check(output, lines)
    return took_s


def _by_run(rig: Rig, lines: int, name: str) -> float:
    """Seconds from the start of the command to its end."""
    rig.backend.reset(DELAY_S)
    output, config = rig.work / f"{name}.jsonl", rig.work / f"{name}.toml"
    config.write_text(to_toml(common_settings(rig.backend)))
    words = ["run", str(rig.input(lines)), "--output", str(output), "--config", str(config)]
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "batchline.cli.main", *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        _pin_when_started(rig, process, output.with_name(f".{output.name}.batchline"))
        _, said = process.communicate()
    took_s = time.perf_counter() - began
    if process.returncode != 0:
        raise RuntimeError(f"run ended with {process.returncode}: {said.decode()}")
    _check(output, lines)
    return took_s


def _pin_when_started(rig: Rig, process: subprocess.Popen[bytes], data: Path) -> None:
    """As a server's processes: the worker on the measured core, the others on theirs."""
    while process.poll() is None:
        children = recorded_children(data)
        if workers := [pid for pid in children if is_worker(pid)]:
            for pid in (process.pid, *children):
                pin(pid, rig.cores.measured if pid in workers else rig.cores.others)
            return
        time.sleep(_POLL_S)


def _check(output: Path, lines: int) -> None:
    with output.open("rb") as file:
        found = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    if found != lines:
        raise RuntimeError(f"{output.name} has {found} lines and not {lines}")
    output.unlink()

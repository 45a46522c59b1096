"""`batchline run` against the same job by `batchline serve`, with the same settings, in turn.

Both begin with nothing running and end with the process gone and the results in a file that is on
disk, so that both starts and both ends count. The server's client polls as often as `run` looks.
CPU is that of the process and its children; what the client of the server spends is not in it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spent:
    wall_s: float
    cpu_s: float


def measure(rig: Rig) -> Measurement:
    """The server's way and the command's in turn."""
    lines = rig.size.lines(LINES)
    rig.input(lines)
    by_server, by_run = [], []
    for number in range(rig.size.times(RUNS)):
        by_server.append(_by_server(rig, lines, f"by-server-{number}"))
        by_run.append(_by_run(rig, lines, f"by-run-{number}"))
        rig.say(
            f"run {number + 1}: serve {by_server[-1].wall_s:.2f} s, {by_server[-1].cpu_s:.2f} s of "
            f"CPU; run {by_run[-1].wall_s:.2f} s, {by_run[-1].cpu_s:.2f} s of CPU"
        )
    ratios = [mine.wall_s / other.wall_s for mine, other in zip(by_run, by_server, strict=True)]
    ratio = sorted(ratios)[len(ratios) // 2]
    return Measurement(
        tables=[
            Table(
                f"{lines:,} lines from nothing to a file of results, start and end of the process",
                [
                    _row("serve: upload, create, poll, download", lines, by_server),
                    _row("run", lines, by_run),
                ],
            )
        ],
        floors=[Floor("run / serve, wall time (median)", ratio, at_most=MOST_OF_SERVER)],
        raw={
            "lines": lines,
            "serve": [asdict(one) for one in by_server],
            "run": [asdict(one) for one in by_run],
            "ratios": ratios,
        },
    )


def _row(what: str, lines: int, spent: list[_Spent]) -> Row:
    return {
        "what": what,
        "wall s": spread([one.wall_s for one in spent]),
        "lines/s": spread([lines / one.wall_s for one in spent]),
        "CPU s": spread([one.cpu_s for one in spent]),
    }


def _since(began_s: float, children_s: float) -> _Spent:
    """`children_s` is `_children_cpu_s()` of the beginning; whatever ran since has ended."""
    return _Spent(wall_s=time.perf_counter() - began_s, cpu_s=_children_cpu_s() - children_s)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _by_server(rig: Rig, lines: int, name: str) -> _Spent:
    """From the start of a server to its end, the results on disk."""
    rig.backend.reset(DELAY_S)
    output = rig.work / f"{name}.jsonl"
    began = time.perf_counter(), _children_cpu_s()
    with rig.with_fresh_server(name) as fresh, fresh.api() as api:
        file_id = api.upload(rig.input(lines))
        batch = fresh.create(file_id)
        done = fresh.completed(batch.id, lines, poll_s=LOOK_S)
        with output.open("wb") as file:
            api.download(done["output_file_id"], file)
            file.flush()
            os.fsync(file.fileno())
        fresh.server.terminate()
        spent = _since(*began)
    _check(output, lines)
    return spent


def _by_run(rig: Rig, lines: int, name: str) -> _Spent:
    """From the start of the command to its end."""
    rig.backend.reset(DELAY_S)
    output, config = rig.work / f"{name}.jsonl", rig.work / f"{name}.toml"
    config.write_text(to_toml(common_settings(rig.backend)))
    words = ["run", str(rig.input(lines)), "--output", str(output), "--config", str(config)]
    began = time.perf_counter(), _children_cpu_s()
    with subprocess.Popen(
        [sys.executable, "-m", "batchline.cli.main", *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # as the server: Linux shares a core out among sessions
    ) as process:
        _pin_when_started(rig, process, output.with_name(f".{output.name}.batchline"))
        _, said = process.communicate()
    spent = _since(*began)
    if process.returncode != 0:
        raise RuntimeError(f"run ended with {process.returncode}: {said.decode()}")
    _check(output, lines)
    return spent


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

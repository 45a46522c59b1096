"""The benchmarks still run: every part, at the smallest size; and what they judge by."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchline.domain.lines import CheckedLine, LineChecker
from bench import run
from bench.cancel import AT_ONCE, WITH_GRACE
from bench.inputs import LINE_BYTES, bodies, write_input
from bench.processes import Cores, anonymous_bytes, cpu_s, pin
from bench.report import Floor, Measurement, Table, percentile
from tests.support import leash
from tests.support.server import is_worker, recorded_children

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the benchmarks measure through /proc"
)

ROOT = Path(__file__).parents[2]

# Some together, because the start of a server is most of the time.
PARTS_AND_FLOORS = {
    (
        *("upload", "validation", "prefix", "dispatch", "wide", "workers"),
        *("finalize", "cancel", "api"),
    ): [
        "validation of chat completions, lines/s (median)",
        "validation of embeddings, lines/s (median)",
        "validation of a file that shares no prefix, CPU, prefix order / file order",
        "worker CPU beyond our client alone, us a line, 256 in flight, backend of 2 ms (median)",
        "lines/s, times the bare aiohttp loop's, 256 in flight, backend of 2 ms (median)",
        "worker CPU beyond our client alone, us a line, 1,000 in flight, backend of 10 ms (median)",
        "worker CPU, us a line, 2,000 in flight, backend of 500 ms (median)",
        "share of the ideal rate, 500 in flight, backend of 50 ms (median)",
        "two workers' CPU a line / one worker's (median)",
        "two workers' CPU a line / one worker's with half of the load (median)",
        "finalize, seconds (slowest)",
        "requests that reached the backend after the 200",
        *(
            f"{way}: ms to {what} (p99)"
            for way in (*WITH_GRACE, *AT_ONCE)
            for what in ("the 200", "quiet past that")
        ),
    ],
    ("crowd", "listing", "rates"): [
        "200 clients, p99 of get, ms (worse of both)",
        "200 clients, p99 of list, ms (worse of both)",
        "answers to the clients that were not right",
        "growth of the control process, MiB",
        "first page: time with many batches / with 100",
        "deep page: time with many batches / with 100",
        "get: time with many batches / with 100",
        "least used of an allowance",
        "refused for the rate",
    ],
    ("limiter", "interactive"): [
        "adaptive limit, seconds until it is near the best (slowest of those tuned on)",
        "adaptive limit, share of the best fixed one's tokens (least)",
        "interactive p95 beside an adaptive batch, times alone (worst)",
        "adaptive batch, share of what was spare (least)",
    ],
    ("scheduling", "queue", "ranges"): [
        "distance from the fair share over an hour, shards, 200 projects (worst)",
        "least share beside a flood",
        "windows missed at a load of 0.7, beyond EDF's",
        "slowdown of small batches at a load of 0.7 (p99)",
        "slowdown of the check of a small file behind another project's flood",
        "page of results, most steps / least",
        "download, KiB of Python objects at most",
    ],
    ("routing",): [
        *(
            f"{workload}: {what}"
            for workload in (
                *(f"groups of {size}" for size in (2, 8, 50, 400)),
                *("sizes by Pareto (0.9)", "one prefix for all"),
            )
            for what in ("share of the bound that is cached", "time, of by room")
        ),
        "slow replica, no prefixes: time, of the least",
        "slow replica, groups of 50: time, of the least",
        "weights: error of a share",
        "routing: CPU a line beyond one backend, us",
    ],
    ("run", "startup", "memory"): [
        "run / serve, wall time (median)",
        "many batches, seconds to the first request",
        "one batch, seconds to the first request",
        "control process at start, bytes a line",
        "slope of all processes, bytes a line",
    ],
    ("control", "stragglers", "progress"): [
        "fast lines/s beside slow ones, of what is possible (slowest)",
        "looks with the end inside the band (worst shape)",
    ],
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.run", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_no_process_and_no_data(number: int, tmp_path: Path) -> None:
    marked = f"OF_THIS_TEST={tmp_path}".encode()
    with subprocess.Popen(
        [sys.executable, "-m", "bench.run", "dispatch", "--directory", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OF_THIS_TEST": str(tmp_path)},
        start_new_session=True,
    ) as process:
        try:
            wait_until(lambda: workers_below(tmp_path))
            assert len(leash.having(marked)) > 3  # itself, a backend, a server and a worker
            process.send_signal(number)
            assert process.wait(30) in {-number, 128 + number}
            wait_until(lambda: not leash.having(marked) and not [*tmp_path.iterdir()])
        finally:
            process.kill()


def workers_below(directory: Path) -> list[int]:
    folders = directory.glob("batchline-bench-*/server/data")
    return [pid for data in folders for pid in recorded_children(data) if is_worker(pid)]


def wait_until(holds: Callable[[], object], *, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.timeout(180)  # a dozen servers, beside two other tests
@pytest.mark.parametrize(
    "parts",
    PARTS_AND_FLOORS,
    ids=["load", "crowd", "limiter", "scheduling", "routing", "run, startup and memory", "pace"],
)
def test_each_part_measures_and_tells_its_floors(parts: tuple[str, ...], tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    ran = bench(*parts, "--size", "0.01", "--json", str(results), "--directory", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [line for line in ran.stdout.splitlines() if line.startswith("## ")] == [
        *(f"## {part}" for part in parts),
        "## floors (not judged: this was not the full size)",
    ]
    found: dict[str, Any] = json.loads(results.read_text())
    assert list(found["parts"]) == list(parts)
    assert all(found["parts"].values())
    assert [floor["what"] for floor in found["floors"]] == PARTS_AND_FLOORS[parts]
    assert list(tmp_path.iterdir()) == [results]  # a gigabyte of inputs does not stay


def test_every_part_is_run_by_these_tests() -> None:
    assert {part for parts in PARTS_AND_FLOORS for part in parts} == set(run.PARTS)


def test_a_part_that_is_not_there_is_refused() -> None:
    ran = bench("speed")
    assert ran.returncode == 2
    assert "no such part: speed" in ran.stderr


def a_measurement(*floors: Floor) -> dict[str, Measurement]:
    return {"part": Measurement(tables=[], floors=floors)}


def test_a_missed_floor_fails_the_run_at_full_size_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    missed = a_measurement(Floor("good", 1.0, at_most=1.0), Floor("bad", 1.5, at_most=1.0))
    assert run.verdict(missed, judged=True) == 1
    assert run.verdict(missed, judged=False) == 0
    assert "MISSED  bad: 1.5 (at most 1)" in capsys.readouterr().out
    assert run.verdict(a_measurement(Floor("good", 2.0, at_least=1.0)), judged=True) == 0


@pytest.mark.parametrize(
    ("floor", "met"),
    [
        (Floor("x", 2.0, at_most=2.0), True),
        (Floor("x", 2.1, at_most=2.0), False),
        (Floor("x", 2.0, at_least=2.0), True),
        (Floor("x", 1.9, at_least=2.0), False),
        (Floor("x", float("nan"), at_most=2.0), False),
    ],
)
def test_a_floor_is_met_up_to_its_limit(floor: Floor, met: bool) -> None:
    assert floor.met is met


def test_every_line_of_an_input_is_good_and_of_one_length(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    assert write_input(path, 10_001) == path.stat().st_size == 10_001 * LINE_BYTES
    checker = LineChecker("/v1/chat/completions")
    lines = path.read_bytes().splitlines(keepends=True)
    checked = [checker.check(line.rstrip(), number) for number, line in enumerate(lines, 1)]
    assert len({one.custom_id for one in checked if isinstance(one, CheckedLine)}) == 10_001
    assert next(bodies(path)) in lines[0]


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 201)]
    assert percentile(values, 50) == 100
    assert percentile(values, 99) == 198
    assert percentile([7.0], 99) == 7


def test_a_table_is_aligned_markdown() -> None:
    table = Table("Title", [{"what": "a", "n": 1}, {"what": "longer", "n": 2_000}])
    assert str(table).splitlines()[2:] == [
        "| what   | n     |",
        "|--------|-------|",
        "| a      | 1     |",
        "| longer | 2,000 |",
    ]


def test_a_process_is_seen_from_outside() -> None:
    assert cpu_s(os.getpid()) > 0
    assert anonymous_bytes(os.getpid()) > 1024 * 1024
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert (cpu_s(gone.pid), anonymous_bytes(gone.pid)) == (0, 0)


def test_a_pinned_process_has_its_threads_on_the_core_too() -> None:
    code = "import threading, sys; e = threading.Event(); "
    code += "threading.Thread(target=e.wait, daemon=True).start(); print(1, flush=True); "
    code += "sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        core = Cores.of_this_machine().measured
        pin(process.pid, core)
        threads = [int(entry.name) for entry in Path(f"/proc/{process.pid}/task").iterdir()]
        assert len(threads) == 2
        assert all(os.sched_getaffinity(thread) == core for thread in threads)

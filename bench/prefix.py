"""The order of a plan: what it saves at simulated engines, and what it costs in validation.

The first two tables are virtual time (`prefix_engine.py`): the same on every machine. The plans in
them are the product's own, made from real input files. The third is measured: files are validated
with `order = "file"`, with `order = "prefix"` and with identical requests running once, in turn, in
this process; the ratio is of pairs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from batchline.domain import plan
from batchline.domain.plan import Order
from batchline.service.validation import ValidationJob, validate
from bench import prefix_engine as engine
from bench.inputs import CHAT, LINE_BYTES
from bench.prefix_workloads import WORKLOADS, Messages, as_lines, as_prompt, nothing_shared
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import Rig

LINES: Final = 2_000  # of each simulated workload
REPLICAS: Final = (1, 4)
COST_LINES: Final = 200_000
RUNS: Final = 9
MOST_COST: Final = 1.02
_MOST_OUTPUT: Final = 96
_LONG_OUTPUT: Final = 2_000
_LONG_SHARE: Final = 0.02
_BLOCK_CHARS: Final = engine.BLOCK_TOKENS * 4
_SEED: Final = 6

_encode: Final = msgspec.json.encode


def measure(rig: Rig) -> Measurement:
    """Both tables."""
    folder = rig.work / "prefix"
    folder.mkdir(parents=True)
    lines = rig.size.lines(LINES, least=100)
    cost, ratio, raw = _cost(rig)
    return Measurement(
        tables=[_simulated(folder, lines), _long_outputs(folder, lines), cost],
        floors=[
            Floor(
                "validation of a file that shares no prefix, CPU, prefix order / file order",
                ratio,
                at_most=MOST_COST,
            )
        ],
        raw=raw,
    )


# -- what it saves -----------------------------------------------------------------------------


def _simulated(folder: Path, lines: int) -> Table:
    rows: list[Row] = []
    for name, make in WORKLOADS.items():
        messages = make(lines)
        in_file = _requests(messages)
        planned = _planned(folder, messages, in_file)
        for replicas in REPLICAS:
            best = engine.bound(in_file, replicas)
            found = {
                "file order": engine.run(engine.InOrder(in_file), replicas),
                "prefix order": engine.run(engine.InOrder(planned), replicas),
                "prefix order, groups kept together": engine.run(
                    engine.ByGroup(planned, replicas), replicas
                ),
                "bound": best,
            }
            rows += [
                {
                    "lines": name,
                    "replicas": replicas,
                    "order": order,
                    "cached share": f"{outcome.cached_share:.1%}",
                    "makespan s": f"{outcome.makespan_s:.1f}",
                    "times the bound": f"{outcome.makespan_s / best.makespan_s:.2f}",
                }
                for order, outcome in found.items()
                if replicas > 1 or order != "prefix order, groups kept together"
            ]
    return Table(f"{lines:,} lines at simulated engines (virtual time)", rows)


def _long_outputs(folder: Path, lines: int) -> Table:
    """One line in 50 is long, and each line's limit is what it generates."""
    messages = nothing_shared(lines)
    chance = random.Random(_SEED)  # noqa: S311  # a workload
    tokens = [
        _LONG_OUTPUT if chance.random() < _LONG_SHARE else chance.randint(1, _MOST_OUTPUT)
        for _ in messages
    ]
    in_file = [
        engine.Request(request.blocks, output)
        for request, output in zip(_requests(messages), tokens, strict=True)
    ]
    planned = _planned(folder, messages, in_file, order=Order.LONG_OUTPUTS, limits=tokens)
    rows: list[Row] = []
    for replicas in REPLICAS:
        longest_s = _LONG_OUTPUT * (engine.STEP_S + engine.DECODE_TOKEN_S)
        best_s = max(engine.bound(in_file, replicas).makespan_s, longest_s)
        for order, requests in (("file order", in_file), ("long outputs first", planned)):
            makespan_s = engine.run(engine.InOrder(requests), replicas).makespan_s
            rows.append(
                {
                    "replicas": replicas,
                    "order": order,
                    "makespan s": f"{makespan_s:.1f}",
                    "times the bound": f"{makespan_s / best_s:.2f}",
                }
            )
    title = f"{lines:,} lines, one in {1 / _LONG_SHARE:.0f} with {_LONG_OUTPUT:,} tokens of output"
    return Table(f"{title} (virtual time)", rows)


def _requests(messages: Sequence[Messages]) -> list[engine.Request]:
    """Requests in file order; a block's id stands for everything up to its end."""
    chance = random.Random(_SEED)  # noqa: S311  # lengths of answers
    ids: dict[tuple[int, str], int] = {}
    requests = []
    for one in messages:
        prompt = as_prompt(one)
        before = 0
        blocks = []
        for start in range(0, len(prompt) - _BLOCK_CHARS + 1, _BLOCK_CHARS):
            block = (before, prompt[start : start + _BLOCK_CHARS])
            before = ids.setdefault(block, len(ids) + 1)
            blocks.append(before)
        requests.append(engine.Request(blocks, chance.randint(1, _MOST_OUTPUT)))
    return requests


def _planned(
    folder: Path,
    messages: list[Messages],
    in_file: Sequence[engine.Request],
    *,
    order: Order = Order.PREFIX,
    limits: Sequence[int] | None = None,
) -> list[engine.Request]:
    """The same requests in the order and with the groups of the product's own plan."""
    source = folder / "input.jsonl"
    source.write_bytes(as_lines(messages, limits or [_MOST_OUTPUT] * len(messages)))
    job = _job(source, folder / "plan", order)
    if problems := validate(job).problems:
        raise RuntimeError(f"a workload is refused: {problems[0]}")
    raw = (folder / "plan").read_bytes()[plan.HEADER_BYTES :]
    return [
        engine.Request(was.blocks, was.output_tokens, entry.prefix_hash)
        for entry in plan.unpack(raw)
        for was in [in_file[entry.line_number - 1]]
    ]


def _job(source: Path, plan_path: Path, order: Order, *, run_once: bool = False) -> ValidationJob:
    unlimited = 2**62
    return ValidationJob(
        input_path=str(source),
        input_bytes=source.stat().st_size,
        plan_path=str(plan_path),
        endpoint=CHAT,
        max_file_bytes=unlimited,
        max_lines=unlimited,
        max_line_bytes=unlimited,
        order=order,
        run_once=run_once,
    )


# -- what it costs -----------------------------------------------------------------------------


def _cost(rig: Rig) -> tuple[Table, float, dict[str, object]]:
    lines = rig.size.lines(COST_LINES)
    folder = rig.work / "prefix"
    unlike, alike = folder / "unlike.jsonl", folder / "alike.jsonl"
    _write(unlike, lines, groups=lines)
    _write(alike, lines, groups=max(1, lines // 10))
    plain, ours, once = "file order", "prefix order", "file order, identical requests run once"
    jobs = {
        ("no prefix", plain): _job(unlike, folder / "plan", Order.FILE),
        ("no prefix", ours): _job(unlike, folder / "plan", Order.PREFIX),
        ("prefixes in tens", plain): _job(alike, folder / "plan", Order.FILE),
        ("prefixes in tens", ours): _job(alike, folder / "plan", Order.PREFIX),
        ("no prefix", once): _job(unlike, folder / "plan", Order.FILE, run_once=True),
    }
    took: dict[tuple[str, str], list[float]] = {what: [] for what in jobs}
    for run in range(rig.size.times(RUNS)):
        # In turn, and each first as often as the other: whatever else happens, happens to both.
        for what in sorted(jobs, reverse=bool(run % 2)):
            began = time.process_time()
            validate(jobs[what])
            took[what].append(time.process_time() - began)
    rows: list[Row] = []
    ratios: dict[tuple[str, str], list[float]] = {}
    for (shared, how), seconds in took.items():
        pairs = zip(seconds, took[shared, plain], strict=True)
        ratios[shared, how] = [more / less for more, less in pairs]
        rows.append(
            {
                "lines share": shared,
                "plan": how,
                "us a line": spread(seconds, 1e6 / lines),
                "ratio of pairs": "" if how == plain else spread(ratios[shared, how]),
            }
        )
    title = f"CPU of validation, {lines:,} lines of {LINE_BYTES} bytes"
    raw: dict[str, object] = {f"{shared}: {how}": took[shared, how] for shared, how in took}
    return Table(title, rows), median(ratios["no prefix", ours]), raw


def _write(path: Path, lines: int, *, groups: int) -> None:
    """Lines of LINE_BYTES; those of a group begin alike up to their last 30 bytes, and those of
    different groups differ from their first word on."""
    chance = random.Random(_SEED)  # noqa: S311  # a workload
    begun = [f"{chance.getrandbits(64):016x} " for _ in range(groups)]
    with path.open("wb") as file:
        for number in range(lines):
            messages = [{"role": "user", "content": begun[number % groups]}]
            line = {
                "custom_id": f"line-{number:010d}",
                "method": "POST",
                "url": CHAT,
                "body": {"model": "m", "messages": messages, "max_tokens": 16, "temperature": 0},
            }
            tail = f" {number:028d}"
            short = LINE_BYTES - len(_encode(line)) - len(tail) - 1
            messages[0]["content"] += "x" * short + tail
            file.write(_encode(line) + b"\n")

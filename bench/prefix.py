"""The order of a plan: what it saves at simulated engines, and what it costs in validation.

The first table is virtual time (`prefix_engine.py`): the same on every machine. The plans in it are
the product's own, made from real input files. The second is measured: the same file is validated
with `order = "file"` and with `order = "prefix"` in turn, in this process; the ratio is of pairs.
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
from bench.prefix_workloads import WORKLOADS, Messages, as_lines, as_prompt
from bench.report import Floor, Measurement, Row, Table, spread
from bench.rig import Rig

LINES: Final = 2_000  # of each simulated workload
REPLICAS: Final = (1, 4)
COST_LINES: Final = 200_000
RUNS: Final = 15
MOST_COST: Final = 1.02
_MOST_OUTPUT: Final = 96
_BLOCK_CHARS: Final = engine.BLOCK_TOKENS * 4
_SEED: Final = 6

_encode: Final = msgspec.json.encode


def measure(rig: Rig) -> Measurement:
    """Both tables."""
    simulated = _simulated(rig.work / "prefix", rig.size.lines(LINES, least=100))
    cost, ratio, raw = _cost(rig)
    return Measurement(
        tables=[simulated, cost],
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
    folder.mkdir(parents=True)
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
    folder: Path, messages: list[Messages], in_file: Sequence[engine.Request]
) -> list[engine.Request]:
    """The same requests in the order and with the groups of the product's own plan."""
    source = folder / "input.jsonl"
    source.write_bytes(as_lines(messages))
    job = _job(source, folder / "plan", Order.PREFIX)
    if problems := validate(job).problems:
        raise RuntimeError(f"a workload is refused: {problems[0]}")
    raw = (folder / "plan").read_bytes()[plan.HEADER_BYTES :]
    return [
        engine.Request(was.blocks, was.output_tokens, entry.prefix_hash)
        for entry in plan.unpack(raw)
        for was in [in_file[entry.line_number - 1]]
    ]


def _job(source: Path, plan_path: Path, order: Order) -> ValidationJob:
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
    )


# -- what it costs -----------------------------------------------------------------------------


def _cost(rig: Rig) -> tuple[Table, float, dict[str, object]]:
    lines = rig.size.lines(COST_LINES)
    folder = rig.work / "prefix"
    source = folder / "unlike.jsonl"
    _write_unlike(source, lines)
    took: dict[Order, list[float]] = {Order.FILE: [], Order.PREFIX: []}
    for run in range(rig.size.times(RUNS)):
        # In turn, and each first as often as the other: whatever else happens, happens to both.
        for order in sorted(took, reverse=bool(run % 2)):
            began = time.process_time()
            validate(_job(source, folder / "plan", order))
            took[order].append(time.process_time() - began)
    ratios = [
        ours / plain for ours, plain in zip(took[Order.PREFIX], took[Order.FILE], strict=True)
    ]
    rows: list[Row] = [
        {
            "order": order.value,
            "us a line": spread(seconds, 1e6 / lines),
            "ratio of pairs": spread(ratios) if order is Order.PREFIX else "",
        }
        for order, seconds in took.items()
    ]
    title = f"CPU of validation, {lines:,} lines of {LINE_BYTES} bytes that share no prefix"
    return (
        Table(title, rows),
        median(ratios),
        {"cpu_s": {order.value: seconds for order, seconds in took.items()}},
    )


def _write_unlike(path: Path, lines: int) -> None:
    """Lines of LINE_BYTES whose prompts differ from their first word on."""
    chance = random.Random(_SEED)  # noqa: S311  # a workload
    with path.open("wb") as file:
        for number in range(lines):
            text = f"{chance.getrandbits(64):016x} "
            messages = [{"role": "user", "content": text}]
            line = {
                "custom_id": f"line-{number:010d}",
                "method": "POST",
                "url": CHAT,
                "body": {"model": "m", "messages": messages, "max_tokens": 16},
            }
            short = LINE_BYTES - len(_encode(line)) - 1
            messages[0]["content"] += "x" * short
            file.write(_encode(line) + b"\n")

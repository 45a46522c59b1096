"""`tests/fault/steps.py` has every step of the product: none can be added without a kill test."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

from tests.fault.scenes import PLAYS
from tests.fault.steps import ELSEWHERE, STEPS, Scene

ROOT: Final = Path(__file__).parents[2]
SRC: Final = ROOT / "src" / "batchline"
MOMENTS: Final = ("before", "inside", "after")  # of a transaction of the store, see `_at_step`


def probes_in(source: Path) -> set[str]:
    """The names of the probes in a file: of `probe("name")` calls, and of the store's steps."""
    found = set()
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imported = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "batchline.telemetry"
        and any(alias.name == "probe" for alias in node.names)
        for node in ast.walk(tree)
    )
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = ast.unparse(function)
        if name == "telemetry.probe" or (name == "probe" and imported):
            found |= _strings(node.args[0])
        elif name == "self._write" and source.name == "database.py":
            steps = [one.value for one in node.keywords if one.arg == "step"]
            assert steps, f"{source.name}:{node.lineno}: a transaction without a step"
            found |= {f"{step}.{moment}" for step in _strings(steps[0]) for moment in MOMENTS}
    return found


def _strings(value: ast.expr) -> set[str]:
    """The names that an argument may have; what is made at run time is named by who makes it."""
    match value:
        case ast.Constant(value=str(name)):
            return {name}
        case ast.IfExp(body=one, orelse=other):
            return _strings(one) | _strings(other)
        case ast.Name(id="step"):
            return {"references.release"}  # one method, two statements
        case ast.Attribute(value=ast.Name(id="event"), attr="value"):
            return {"window_closed", "all_lines_finished", "input_lost"}
        case ast.JoinedStr():
            return set()  # `_at_step`: the steps of the store
        case _:
            raise AssertionError(f"a probe whose name cannot be read: {ast.unparse(value)}")


def test_every_probe_of_the_product_is_in_the_table_of_steps() -> None:
    """If this fails, add the new step to STEPS, with the scene that comes by it, and see it run."""
    found = {probe for source in SRC.rglob("*.py") for probe in probes_in(source)}
    known = {step.probe for step in STEPS} | ELSEWHERE.keys()
    assert sorted(found - known) == [], "steps that no kill test ends anybody at"
    assert sorted(known - found) == [], "the table has steps that the product does not have"


def test_what_is_tested_elsewhere_is_named_there() -> None:
    for probe, test in ELSEWHERE.items():
        group, _, name = probe.rpartition(".")
        said = (ROOT / test).read_text(encoding="utf-8")
        whole = re.search(rf'"{re.escape(probe)}[="]', said)
        assert whole or (f'"{group}.{{step}}=kill"' in said and f'"{name}"' in said), probe


def test_each_row_is_its_own_and_can_be_played() -> None:
    rows = [str(step) for step in STEPS]
    assert sorted(set(rows)) == sorted(rows)
    assert PLAYS.keys() == set(Scene)
    assert all(step.victim in (None, *step.victims) for step in STEPS)


def test_every_step_is_ended_in_make_test_too() -> None:
    """At one of its rows at least, a transaction at one of its moments."""
    quick = {_name(step.probe) for step in STEPS if step.victim is not None}
    assert {_name(step.probe) for step in STEPS} - quick == set()


def _name(probe: str) -> str:
    """A transaction is one step of three moments."""
    name, _, moment = probe.rpartition(".")
    return name if moment in MOMENTS else probe

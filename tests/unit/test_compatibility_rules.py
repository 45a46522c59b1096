"""`docs/compatibility.md` and the tests agree: no rule that is done is without a test."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([A-Z]\d+) \|.*\| (\w+) \|$", re.MULTILINE)
MARK = re.compile(r"mark\.rule\(\s*\"([A-Z]\d+)\"")


def rules() -> list[tuple[str, str]]:
    return ROW.findall((ROOT / "docs" / "compatibility.md").read_text())


def marked() -> set[str]:
    sources = (path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    return {rule for source in sources for rule in MARK.findall(source)}


def test_every_rule_that_is_done_has_a_test() -> None:
    """If this fails, mark the test that holds the rule with its id; do not change the state."""
    assert sorted({rule for rule, state in rules() if state == "done"} - marked()) == []


def test_every_mark_names_a_rule() -> None:
    """If this fails, write the rule down first: what holds, and how well it is known."""
    assert sorted(marked() - {rule for rule, _ in rules()}) == []


def test_every_row_of_the_tables_is_understood() -> None:
    text = (ROOT / "docs" / "compatibility.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| [A-Z]\d", line)]
    assert len(rows) == len(rules()) > 50
    assert {state for _, state in rules()} <= {"done", "later", "never"}
    assert [rule for rule, count in Counter(rule for rule, _ in rules()).items() if count > 1] == []

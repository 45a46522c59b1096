"""The reference pages and the code say the same: commands, routes, error codes, guarantees."""

from __future__ import annotations

import ast
import gc
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from fastapi import FastAPI

from batchline.api.app import create_app
from batchline.cli.main import app as program
from batchline.domain.results import Failure
from tests.support.openapi import Documented

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
SOURCE = ROOT / "src" / "batchline"
FIRST_CELL = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
TAKES = re.compile(r"^\| `([A-Z]+ /[^`]*)` \|([^|]*)\|", re.MULTILINE)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def first_cells(page: str, section: str) -> list[str]:
    """What the rows of one section's table are about."""
    text = (REFERENCE / page).read_text()
    head = f"\n## {section}\n"
    assert head in text, f"{page} has no section '{section}'"
    return FIRST_CELL.findall(text.partition(head)[2].partition("\n## ")[0])


# -- commands ----------------------------------------------------------------------------------


def commands() -> dict[str, list[str]]:
    """The options of each command, without --help; arguments by their names in the help."""
    return dict(_commands_of(cast("Any", typer.main.get_command(program)), ""))


def _commands_of(group: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands_of(command, f"{prefix}{name} ")
        else:
            yield prefix + name, [word for one in command.params for word in _words_of(one)]


def _words_of(parameter: Any) -> list[str]:
    return parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_of_a_command_is_documented(name: str) -> None:
    """If this fails, put the option into docs/reference/commands.md."""
    assert first_cells("commands.md", f"batchline {name}") == commands()[name]


def test_no_command_is_documented_that_does_not_exist() -> None:
    sections = re.findall(r"^## batchline ([\w ]+)$", (REFERENCE / "commands.md").read_text(), re.M)
    assert sorted(sections) == sorted(commands())


# -- routes ------------------------------------------------------------------------------------


def application() -> FastAPI:
    nothing = cast("Any", None)  # only the routes are looked at
    return create_app(
        *(nothing, nothing, nothing, nothing),
        **dict.fromkeys(("uploads", "dry_run", "results", "progress"), nothing),
    )


def test_every_route_is_documented() -> None:
    """If this fails, put the route into docs/reference/api.md."""
    routes = {
        f"{method.upper()} {path}"
        for path, methods in application().openapi()["paths"].items()
        for method in methods
    }
    documented = FIRST_CELL.findall((REFERENCE / "api.md").read_text())
    assert sorted(documented) == sorted(routes)


def taken() -> dict[str, tuple[list[str], list[str]]]:
    """What each route takes beside its path: names that must be there, and names that may."""
    document = Documented().document
    found = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            need: list[str] = []
            may: list[str] = []
            for body in operation.get("requestBody", {}).get("content", {}).values():
                schema = document["components"]["schemas"][body["schema"]["$ref"].split("/")[-1]]
                for name in schema["properties"]:
                    (need if name in schema["required"] else may).append(name)
            for one in operation.get("parameters", []):
                if one["in"] != "path":
                    (need if one.get("required") else may).append(one["name"])
            found[f"{method.upper()} {path}"] = (need, may)
    return found


def test_every_parameter_of_a_route_is_documented_and_no_other() -> None:
    """If this fails, correct the column *Takes* of docs/reference/api.md."""
    documented = {}
    for route, cell in TAKES.findall((REFERENCE / "api.md").read_text()):
        must, _, can = cell.partition("optional")
        documented[route] = (re.findall("`([^`]+)`", must), re.findall("`([^`]+)`", can))
    assert documented == taken()


# -- error codes -------------------------------------------------------------------------------


@cache
def calls() -> list[tuple[Path, ast.Call]]:
    return [(path, node) for path, node in nodes() if isinstance(node, ast.Call)]


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    found = [
        (path, node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    gc.freeze()  # some hundred thousand, and each test ends with a collection
    return found


@pytest.fixture(autouse=True, scope="module")
def read_once() -> Iterator[None]:
    """The source is parsed once for all of these tests, and not kept for others."""
    yield
    calls.cache_clear()
    nodes.cache_clear()


def text_of(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def name_of(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def keyword_codes(*, keyword: str, callee: str | None = None) -> set[str]:
    """Texts that are handed over as `keyword`, by any call or by calls of `callee`."""
    return {
        text
        for _, call in calls()
        for given in call.keywords
        if given.arg == keyword
        and callee in (None, name_of(call))
        and (text := text_of(given.value)) is not None
    }


def leading_codes(*callees: str) -> set[str]:
    """Texts that are the first argument of calls of `callees`."""
    return {
        text
        for _, call in calls()
        if name_of(call) in callees and call.args and (text := text_of(call.args[0])) is not None
    }


def exception_codes() -> set[str]:
    """The `code` that classes of the error tree have."""
    return {
        text
        for _, node in nodes()
        if isinstance(node, ast.ClassDef)
        for one in node.body
        if isinstance(one, ast.Assign | ast.AnnAssign)
        and "code"
        in {ast.unparse(t) for t in getattr(one, "targets", [getattr(one, "target", one)])}
        and (text := text_of(one.value)) is not None
    }


def assigned_codes() -> set[str]:
    """Texts that are assigned to `code` together with a message (`api/errors.py`)."""
    return {
        text
        for _, node in nodes()
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for targets in node.targets
        if isinstance(targets, ast.Tuple)
        for target, value in zip(targets.elts, node.value.elts, strict=True)
        if ast.unparse(target) == "code" and (text := text_of(value)) is not None
    }


def problem_codes() -> set[str]:
    problems = keyword_codes(keyword="code", callee="LineProblem")
    return problems | leading_codes("_Fault", "_problem")


def test_every_code_of_an_answer_is_documented() -> None:
    """If this fails, put the code into docs/reference/errors.md with its status."""
    in_code = keyword_codes(keyword="wire_code") | assigned_codes()
    in_code |= keyword_codes(keyword="code", callee="refusal")
    in_code |= keyword_codes(keyword="code", callee="error")
    # `StoreError`s are shown under their own codes.
    in_code |= {"blob_unreadable", "storage_full", "store_unavailable"} & exception_codes()
    documented = first_cells("errors.md", "Answers of the API")
    assert sorted(documented) == sorted(in_code)


def test_every_code_of_a_problem_in_an_input_file_is_documented() -> None:
    assert sorted(first_cells("errors.md", "Problems of an input file")) == sorted(problem_codes())


def test_every_code_of_a_line_without_an_answer_is_documented_in_order() -> None:
    assert first_cells("errors.md", "Lines of an error file") == [one.value for one in Failure]


def test_every_code_of_an_exception_is_documented() -> None:
    assert sorted(first_cells("errors.md", "Inside")) == sorted(exception_codes())


def test_no_call_hands_over_a_code_that_these_tests_do_not_look_at() -> None:
    """If this fails, say above which page the new kind of code belongs to."""
    every = keyword_codes(keyword="code")
    known = [
        keyword_codes(keyword="code", callee=one) for one in ("LineProblem", "refusal", "error")
    ]
    assert sorted(every.difference(*known)) == []


# -- guarantees --------------------------------------------------------------------------------


def test_every_test_that_a_guarantee_names_exists() -> None:
    """If this fails, name the test that holds the promise now; do not drop the promise."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    named = NAMED_TEST.findall(text)
    assert len(named) == text.count("::")
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).is_file() or f"def {test}(" not in (ROOT / file).read_text()
    ]
    assert missing == []


def test_every_guarantee_names_a_test() -> None:
    sections = (ROOT / "docs" / "guarantees.md").read_text().split("\n## ")[1:]
    assert len(sections) == 10
    assert [one.splitlines()[0] for one in sections if not NAMED_TEST.search(one)] == []

"""Real text that every machine with Python has: the docstrings of its standard library.

Owns what is collected and in which order, and nothing of batches. Source files are parsed, never
imported: importing a module can open windows (`turtle`), web pages (`antigravity`) or print poems.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

MIN_CHARACTERS: Final = 25  # shorter ones ("See base class.") say nothing to search for
MAX_CHARACTERS: Final = 400  # about 90 tokens; one first paragraph in 200 is longer

# Tests and build tools document themselves, encodings' 120 modules all say the same, and tkinter
# would be a fifth of all methods. distutils and lib2to3 are gone from newer Pythons.
_LEFT_OUT: Final = frozenset(
    {
        *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"),
        *("distutils", "encodings", "ensurepip", "msilib", "pydoc_data", "tkinter", "turtle"),
    }
)


class _Rank(IntEnum):
    """What is taken first: what a person would look for in the table of contents."""

    FUNCTION_OR_MODULE = 0
    CLASS = 1
    METHOD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Docstring:
    """The first paragraph of one docstring, on one line, and the qualified name it belongs to."""

    name: str
    text: str


class TooFewDocstrings(Exception):
    """The standard library here has fewer usable docstrings than asked for."""


def collect(wanted: int, *, stdlib: Path | None = None) -> list[Docstring]:
    """Exactly `wanted` docstrings with distinct names and distinct texts, in the library's order.

    The same Python gives the same list. Module-level functions and modules come before classes, and
    those before methods; of the rank that is not needed whole, an even spread is taken, so that 200
    docstrings cover the library from `abc` to `zipfile` as 2,000 do.

    Args:
        wanted: at least 1.
        stdlib: the directory to read; None means the running Python's own.

    Raises:
        TooFewDocstrings: there are not as many.
    """
    root = stdlib if stdlib is not None else Path(sysconfig.get_path("stdlib"))
    ranks: dict[_Rank, list[tuple[int, Docstring]]] = {rank: [] for rank in _Rank}
    seen: set[str] = set()
    for position, (rank, docstring) in enumerate(_walk_library(root)):
        if docstring.text not in seen and docstring.name not in seen:
            seen |= {docstring.text, docstring.name}
            ranks[rank].append((position, docstring))
    found = sum(map(len, ranks.values()))
    if found < wanted:
        raise TooFewDocstrings(f"{found} usable docstrings under {root}, {wanted} were asked for")
    chosen: list[tuple[int, Docstring]] = []
    for rank in _Rank:
        chosen += _spread(ranks[rank], wanted - len(chosen))
    return [docstring for _, docstring in sorted(chosen, key=lambda pair: pair[0])]


def _spread(items: Sequence[T], wanted: int) -> list[T]:
    """At most `wanted` items at even distances, the first one among them."""
    if wanted >= len(items):
        return list(items)
    return [items[index * len(items) // wanted] for index in range(wanted)]


def _walk_library(root: Path) -> Iterator[tuple[_Rank, Docstring]]:
    """Every public docstring under `root`, by file name and then from top to bottom."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        module = [part for part in parts if part != "__init__"]
        if not module or any(part.startswith("_") or part in _LEFT_OUT for part in module):
            continue
        if not all(part.isidentifier() for part in module):  # config-3.11-x86_64-linux-gnu/
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue  # templates and deliberately broken samples are no modules
        yield from _walk(tree, ".".join(module), _Rank.FUNCTION_OR_MODULE)


def _walk(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, rank: _Rank
) -> Iterator[tuple[_Rank, Docstring]]:
    """The docstring of `node` and of what is defined right inside it."""
    paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
    text = " ".join(paragraph.split())[:MAX_CHARACTERS].rstrip()
    if len(text) >= MIN_CHARACTERS:
        yield rank, Docstring(name=name, text=text)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    inside_class = isinstance(node, ast.ClassDef)
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not child.name.startswith("_"):
            is_class = isinstance(child, ast.ClassDef)
            child_rank = _Rank.METHOD if inside_class else _Rank.FUNCTION_OR_MODULE
            yield from _walk(child, f"{name}.{child.name}", _Rank.CLASS if is_class else child_rank)

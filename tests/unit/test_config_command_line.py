"""The program as a person starts it: what it prints and how it exits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchline import __version__


def batchline(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchline.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "NO_COLOR": "1", **env},
    )


def test_the_version_is_one_line() -> None:
    ran = batchline("--version")
    assert (ran.returncode, ran.stdout) == (0, f"batchline {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "command line: server.port: expected a whole number from 0 to 65535"),
        (["--workers", "0"], "command line: workers: expected a whole number from 1"),
        (["--upstream", "ftp://x"], "--upstream: base_url: 'ftp://x'"),
        (["--upstream", "x:1", "--upstream", "x:1/v1"], "--upstream: two backends are named 'x:1'"),
        (["--config", "no-such.toml"], "no-such.toml: cannot be read"),
    ],
)
def test_a_wrong_setting_is_one_line_on_stderr_and_exit_code_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    ran = batchline("serve", "--data-dir", str(tmp_path / "data"), *arguments)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith(f"batchline: {message}"), ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_the_help_names_every_command() -> None:
    ran = batchline("--help")
    assert ran.returncode == 0
    assert "serve" in ran.stdout
    assert "keys" in ran.stdout
    assert "demo" in ran.stdout

"""The program as a person starts it: what it prints and how it exits."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from batchline import __version__
from batchline.cli.file_limit import too_few_files
from batchline.config.loading import load


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


INTERRUPTED_IN_A_CALLBACK = """
import os, signal, sys, weakref
signal.signal(signal.SIGINT, signal.default_int_handler)  # CI may have it ignored
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == "batchline.config.loading":
            there = Pressed()
            watched = weakref.ref(there, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del there
        return None
sys.meta_path.insert(0, Pressed())
from batchline.cli.main import main
sys.argv[0] = "batchline"
main()
"""


@pytest.mark.parametrize(
    "arguments", [["serve", "--config", "no-such.toml"], ["run", "in.jsonl", "--output", "o.jsonl"]]
)
def test_ctrl_c_while_modules_are_imported_is_never_lost(
    tmp_path: Path, arguments: list[str]
) -> None:
    # Python only prints an exception that meets a callback, as those of its import locks are. With
    # the default handler these commands went on and ended with 2, of what is missing here.
    (tmp_path / "in.jsonl").touch()
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IN_A_CALLBACK, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert (ran.returncode, ran.stderr) == (130, "")


def test_too_few_open_files_are_told(tmp_path: Path) -> None:
    settings = load(environ={}, upstreams=["a", "b"])  # of 64 each
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (191, before[1]))
        said = too_few_files(settings)
        assert said is not None
        assert "191 files open" in said
        assert "128 requests" in said
        resource.setrlimit(resource.RLIMIT_NOFILE, (192, before[1]))
        assert too_few_files(settings) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_help_names_every_command() -> None:
    ran = batchline("--help")
    assert ran.returncode == 0
    assert "serve" in ran.stdout
    assert "keys" in ran.stdout
    assert "demo" in ran.stdout

"""How a command ends where its output cannot be taken as it is."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys

import msgspec
import pytest
import typer

from batchline.cli.client import shown
from batchline.cli.outcome import FAILED, USAGE, ended_well


def printed(text: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command that prints `text` leaves on a stdout of this encoding."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    ended_well(lambda: shown.say(text))()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_stays_json_whatever_the_locale_cannot_write(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"filename": "é 漢 \N{GRINNING FACE} \ufffd"}
    assert json.loads(printed(shown.as_json(shape), encoding, monkeypatch)) == shape


def test_a_name_that_is_no_text_is_shown_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(os.fsdecode(b"a\xff"), "utf-8", monkeypatch) == "a\\udcff\n"


def test_a_full_disk_behind_stdout_is_said_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own: what it does to its stdout is for the rest of its life."""
    program = (
        "import errno, sys\n"
        "from batchline.cli.outcome import ended_well\n"
        "@ended_well\n"
        "def full(): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "import typer\n"
        "try: full()\n"
        "except typer.Exit as exc: sys.exit(exc.exit_code)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], timeout=30, check=False)
    assert ran.returncode == FAILED
    assert capfd.readouterr().err == f"batchline: {os.strerror(errno.ENOSPC)}\n"


def test_a_closed_stdout_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    ended_well(lambda: shown.say("nobody reads this"))()
    sys.stdout.close()


def test_an_argument_that_is_not_utf_8_is_a_wrong_argument(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(name: str) -> None:
        msgspec.json.encode(name)

    with pytest.raises(typer.Exit) as exited:
        ended_well(command)(os.fsdecode(b"\xff"))
    assert exited.value.exit_code == USAGE
    assert capsys.readouterr().err == "batchline: an argument is not UTF-8\n"


def test_a_terminal_is_told_nothing_by_names_and_metadata() -> None:
    table = shown.table(("NAME",), [("a\x1b[2J\nb\x9b",)])
    assert table == "NAME\na\\x1b[2J\\x0ab\\x9b"

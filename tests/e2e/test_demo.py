"""The demo whole: a real model, a real server, the official client; nothing is faked.

The question is made here, at run time, from a docstring picked at random: an answer that does not
come from the vectors of the downloaded file could not know it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from batchline.cli.demo.docstrings import collect
from tests.support.installed import MODEL_PACKAGE, require_modules

require_modules("numpy", "tokenizers", "openai", MODEL_PACKAGE)

LINES = 200
PYTHON = [sys.executable, "-m", "batchline.cli.main"]


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def processes_with(argument: str) -> list[str]:
    """Command lines of running processes that mention `argument`."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended while we looked
            found.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    if not found:  # no Linux
        listing = subprocess.run(["/bin/ps", "-Ao", "args="], stdout=subprocess.PIPE, check=True)
        found = listing.stdout.decode(errors="replace").splitlines()
    return [line for line in found if argument in line]


@pytest.mark.timeout(240)
@pytest.mark.long
def test_the_demo_answers_a_question_given_at_run_time_and_accounts_for_every_line(
    tmp_path: Path,
) -> None:
    docstrings = collect(LINES)
    wanted = random.choice([one for one in docstrings if 50 <= len(one.text) <= 120])  # noqa: S311  # a test's choice
    question = f"I am looking for this: {wanted.text.lower()}"

    ran = subprocess.run(
        [
            *(*PYTHON, "demo", "--docstrings", str(LINES)),
            *("--question", question, "--data-dir", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=200,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = ran.stdout
    rows = re.findall(r"^ *(-?\d\.\d{3}) +(\S+)", said, re.MULTILINE)
    # Of 99 such questions 99 find their docstring first; the second place is for other Pythons,
    # whose libraries may say nearly the same thing twice.
    assert wanted.name in [name for _, name in rows[:2]], f"asked {question!r}\n{said}"
    assert len(rows) == 5
    names = {one.name for one in docstrings}
    assert {line["custom_id"] for line in lines_of(tmp_path / "output.jsonl")} == names

    finished = lines_of(tmp_path / "cancelled-output.jsonl")
    unfinished = lines_of(tmp_path / "cancelled-errors.jsonl")
    assert {line["custom_id"] for line in (*finished, *unfinished)} == names
    assert len(finished) + len(unfinished) == LINES

    def shown(what: str) -> int:
        match = re.search(rf"^ *([\d,]+) +{what}", said, re.MULTILINE)
        assert match, f"{what!r} is not in\n{said}"
        return int(match[1].replace(",", ""))

    assert shown("lines finished") == len(finished) > 0
    assert shown("lines aborted") + shown("lines never sent") == len(unfinished) > 0
    assert shown("lines in all") == LINES
    assert shown("ms +from the cancel call to its acknowledgement") < 2_000
    assert shown("ms +from the cancel call to a quiet backend") < 10_000
    assert processes_with(str(tmp_path)) == []


@pytest.mark.timeout(120)
@pytest.mark.long
def test_a_demo_that_is_terminated_leaves_nothing_running(tmp_path: Path) -> None:
    log = tmp_path / "said"
    data = tmp_path / "demo"
    with log.open("wb") as sink:
        ran = subprocess.Popen(
            [*PYTHON, "demo", "--docstrings", str(LINES), "--data-dir", str(data)],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        while b"Created batch_" not in log.read_bytes():
            assert ran.poll() is None, log.read_text()
            try:
                ran.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
        ran.send_signal(signal.SIGTERM)
        assert ran.wait(40) == 128 + signal.SIGTERM, log.read_text()
    finally:
        ran.kill()
        ran.wait()
    assert processes_with(str(data)) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", ["end of standard input", "SIGTERM"])
def test_the_example_backend_ends_cleanly(way: str) -> None:
    arguments = ["-m", "examples.embeddings_backend", "--port", "0", "--until-stdin-closes"]
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline().startswith(b"listening on http://127.0.0.1:")
        if way == "SIGTERM":
            child.terminate()
        else:
            child.stdin.close()
        assert child.wait(20) == 0

"""The program as a person or a script runs it: a real process, its output and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import anyio

from tests.support import forked

MODULE = [sys.executable, "-m", "batchline.cli.main"]


async def command(
    *arguments: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; the loop goes on meanwhile, and with it a backend that lives there."""
    words = [str(argument) for argument in arguments]
    return await anyio.to_thread.run_sync(lambda: run(words, env, timeout_s=timeout_s))


def run(
    arguments: list[str], env: Mapping[str, str] | None = None, *, timeout_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """The same, where no loop runs."""
    with TemporaryFile() as out, TemporaryFile() as err, _nothing() as nothing:
        process = forked.start(
            "batchline",
            arguments,
            stdin=nothing,
            stdout=out.fileno(),
            stderr=err.fileno(),
            env=_environment(env),
        )
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(
            arguments, status, out.read().decode(), err.read().decode()
        )


@contextmanager
def started(
    *arguments: str | Path, env: Mapping[str, str] | None = None, stderr: Path | None = None
) -> Iterator[forked.Forked]:
    """It runs for the length of the block at most; to be signalled and waited for. `stderr` is a
    file for what it says there."""
    with _nothing() as nothing, (stderr or Path(os.devnull)).open("wb") as said:
        process = forked.start(
            "batchline",
            [str(argument) for argument in arguments],
            stdin=nothing,
            stdout=nothing,
            stderr=said.fileno(),
            env=_environment(env),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def ended(process: forked.Forked, *, timeout_s: float = 30.0) -> int:
    return await anyio.to_thread.run_sync(lambda: process.wait(timeout_s))


@contextmanager
def _nothing() -> Iterator[int]:
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        yield nothing
    finally:
        os.close(nothing)


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    # Wide and plain, so that help and tables are not wrapped or coloured.
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", **(env or {})}

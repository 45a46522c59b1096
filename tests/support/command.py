"""The program as a person or a script runs it: a real process, its output and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import anyio

MODULE = [sys.executable, "-m", "batchline.cli.main"]


async def command(
    *arguments: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; the loop goes on meanwhile, and with it a backend that lives there."""
    return await anyio.to_thread.run_sync(
        lambda: subprocess.run(
            [*MODULE, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=_environment(env),
        )
    )


@contextmanager
def started(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """It runs for the length of the block at most; to be signalled and waited for."""
    process = subprocess.Popen(
        [*MODULE, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(env),
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def ended(process: subprocess.Popen[bytes], *, timeout_s: float = 20.0) -> int:
    return await anyio.to_thread.run_sync(lambda: process.wait(timeout_s))


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    # Wide and plain, so that help and tables are not wrapped or coloured.
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb", **(env or {})}

"""A job's child and the end of its server."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from batchline.service.jobs import LENGTH_BYTES, Request


def test_a_child_whose_server_is_gone_when_it_answers_ends_without_a_traceback(
    tmp_path: Path,
) -> None:
    """Its thread does not get to run first, as on a busy machine."""
    code = (
        "from batchline.executor import processes; processes.exit_with_peer = lambda fd: None; "
        "from batchline.cli import job_child; job_child.main()"
    )
    request = msgspec.msgpack.encode(Request(function="nothing:nothing", job=msgspec.Raw(b"\xc0")))
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(len(request).to_bytes(LENGTH_BYTES) + request)
        ran = subprocess.run(
            [sys.executable, "-c", code, f"{theirs.fileno()}", tmp_path, ""],
            pass_fds=[theirs.fileno()],
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (0, b"")

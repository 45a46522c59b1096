"""A child that a server of another version started says who it is, does nothing, and ends."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from batchline.executor.protocol import PROTOCOL, named_in

OTHER = {"type": "Configure", "protocol": "9.9.9/7", "settings": {"new": "shape"}, "probes": ""}
SILENT = {"type": "Configure", "settings": {"old": "shape"}, "probes": ""}
ORDER = {"type": "OpenShard", "work": None}


def words(child: str, fd: int, children: Path) -> list[str]:
    if child == "worker":
        given = ["batchline.cli.worker_child", "--children", str(children), "--fd", str(fd)]
    else:
        given = ["batchline.cli.job_child", str(fd), str(children), ""]
    return [sys.executable, "-m", *given]


def framed(message: object) -> bytes:
    raw = msgspec.msgpack.encode(message)
    return len(raw).to_bytes(4) + raw


@pytest.mark.parametrize("child", ["worker", "job"])
@pytest.mark.parametrize("first", [OTHER, SILENT], ids=["another version", "none"])
def test_a_child_of_another_version_answers_with_its_own_and_obeys_nothing(
    tmp_path: Path, child: str, first: dict[str, object]
) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours:
        with theirs:
            process = subprocess.Popen(
                words(child, theirs.fileno(), tmp_path),
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        with process:
            ours.sendall(framed(first) + (framed(ORDER) if child == "worker" else b""))
            length = int.from_bytes(ours.recv(4, socket.MSG_WAITALL))
            answer = ours.recv(length, socket.MSG_WAITALL)
            assert named_in(answer) == PROTOCOL
            decoded = msgspec.msgpack.decode(answer)
            assert not decoded.get("result")
            assert not decoded.get("error_code")
            assert decoded.get("message", "") == ""
            if child == "worker":
                assert ours.recv(1) == b""  # it ends by itself
            ours.close()
            assert process.wait(10) == 0
            assert process.stderr is not None
            assert process.stderr.read() == b""

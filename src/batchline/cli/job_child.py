"""A child process that runs jobs for the server, one after another (`service/jobs.py`).

Started as `python -m batchline.cli.job_child FD CHILDREN_DIR PROBES`. It ends when the other side
of the socket FD is gone.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import traceback
import typing
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from batchline import telemetry
from batchline.executor import processes
from batchline.executor.protocol import PROTOCOL, named_in
from batchline.service import leftovers, validation  # noqa: F401  # ready before the first job
from batchline.service.jobs import CARRIED, LENGTH_BYTES, Reply, Request

_NICENESS: Final = 5  # the server's event loop and the workers go first


def main() -> None:
    fd, children_dir, probes = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    processes.record_self(children_dir)
    processes.leave_the_end_to_the_server()
    os.nice(_NICENESS)
    telemetry.arm(probes)
    processes.exit_with_peer(fd)
    # A server that is gone is no fault of ours, at whatever point that shows.
    with socket.socket(fileno=fd) as server, suppress(ConnectionError):
        while True:
            length = int.from_bytes(_receive(server, LENGTH_BYTES))
            reply = msgspec.msgpack.encode(_answer(_receive(server, length)))
            server.sendall(len(reply).to_bytes(LENGTH_BYTES) + reply)


def _receive(server: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes; ends the process when the server is gone."""
    received = bytearray()
    while len(received) < length:
        chunk = server.recv(min(length - len(received), 1024 * 1024))
        if not chunk:
            sys.exit(0)
        received += chunk
    return bytes(received)


def _answer(raw: bytes) -> Reply:
    """Run the job. An error that is not carried is named by its place; its message may quote what
    users sent, and stays here. A server of another version is told which this is, and no more."""
    if named_in(raw) != PROTOCOL:
        return Reply()
    request = msgspec.msgpack.decode(raw, type=Request)
    try:
        module, _, name = request.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        hints = typing.get_type_hints(function)
        hints.pop("return", None)
        job = msgspec.msgpack.decode(request.job, type=next(iter(hints.values())))
        return Reply(result=msgspec.msgpack.encode(function(job)))
    except tuple(CARRIED.values()) as exc:
        return Reply(error_code=exc.code, message=exc.message)
    except Exception as exc:  # noqa: BLE001  # whatever it is, the server has to hear of it
        place = traceback.extract_tb(exc.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return Reply(message=f"{request.function}: {type(exc).__name__} at {where}")


if __name__ == "__main__":
    main()

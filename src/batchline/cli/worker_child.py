"""A worker process: `python -m batchline.cli.worker_child --children DIR --fd N`.

Wires a `Worker` to the socket it inherited. Ends when that socket does: a thread sees the hang-up
even while the event loop is busy, and the kernel closes every connection.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import signal
import socket
from pathlib import Path

import uvloop

from batchline import telemetry
from batchline.executor import messages as m
from batchline.executor import processes
from batchline.executor.transport.general import GeneralTransport
from batchline.executor.worker import Worker


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--children", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args()
    processes.record_self(options.children)
    # Ctrl-C and a group's SIGTERM reach children too; when to end is the server's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    processes.exit_with_peer(options.fd)
    raise_file_limit()
    # Lines are plain tasks and bytes without cycles; the young generation alone would be walked
    # thousands of times a second for nothing.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    telemetry.configure_logging()
    uvloop.run(serve(socket.socket(fileno=options.fd)))


async def serve(control: socket.socket) -> None:
    """Work for the control process at the other end of `control` until it is gone."""
    reader, writer = await asyncio.open_connection(sock=control)
    first = await m.read_frame(reader)
    if first is None:
        return
    configure = m.decode_to_worker(first)
    if not isinstance(configure, m.Configure):
        raise TypeError("the first message to a worker is its configuration")
    telemetry.arm(configure.probes)

    def send(message: m.ToControl) -> None:
        writer.write(m.frame(message))

    worker = Worker(configure.settings, send=send, transport=GeneralTransport)
    working = asyncio.ensure_future(worker.run())
    send(m.Hello(pid=os.getpid()))
    listening = asyncio.ensure_future(_listen(reader, worker))
    await asyncio.wait([working, listening], return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    if not working.done():
        working.cancel()
        return
    working.result()
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _listen(reader: asyncio.StreamReader, worker: Worker) -> None:
    while (payload := await m.read_frame(reader)) is not None:
        worker.handle(m.decode_to_worker(payload))


def raise_file_limit() -> None:
    """As many sockets as the system allows: each request in flight is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS refuses "infinity"
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(10_240, hard), hard))


if __name__ == "__main__":
    main()

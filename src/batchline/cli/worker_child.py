"""A worker process: `python -m batchline.cli.worker_child --children DIR --fd N`.

Wires a `Worker` to the socket it inherited. Ends when that socket does: a thread sees the hang-up
even while the event loop is busy, and the kernel closes every connection.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import socket
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from batchline import telemetry
from batchline.cli.file_limit import raise_file_limit
from batchline.executor import messages as m
from batchline.executor import processes
from batchline.executor.framing import FrameReader, decode_to_worker, frame
from batchline.executor.intake import Intake
from batchline.executor.protocol import PROTOCOL, named_in
from batchline.executor.transport.choice import transport_for
from batchline.executor.worker import Worker


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--children", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args()
    processes.record_self(options.children)
    processes.leave_the_end_to_the_server()
    processes.exit_with_peer(options.fd)
    raise_file_limit()
    # Lines are plain tasks and bytes without cycles; the young generation alone would be walked
    # thousands of times a second for nothing.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    telemetry.configure_logging()
    uvloop.run(serve(socket.socket(fileno=options.fd)))


async def serve(control: socket.socket) -> None:
    """Work for the control process at the other end of `control` until it is gone, or something of
    ours fails; ends this process."""
    link = _Link()
    await asyncio.get_running_loop().create_connection(lambda: link, sock=control)
    status = 0
    try:
        await link.ended
    except Exception:  # noqa: BLE001  # whatever it was, this process ends of it
        status = 1
        with suppress(OSError):  # nobody may be there to read it
            traceback.print_exc()
    # At once, as the thread would: while the loop closes, requests that it aborts are free to be
    # sent again, and would be.
    os._exit(status)


class _Link(asyncio.Protocol):
    """The socket to the control process.

    A protocol and not a stream: each message is obeyed in the loop step in which its bytes came.
    With hundreds of answers ready in every step, a stream's reader task is a step of up to 20 ms
    later, and a cancel waits for it.
    """

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._worker: Worker | None = None
        self._working: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._frames.feed(data):
                if self._worker is None and named_in(payload) != PROTOCOL:
                    self._refuse()
                    return
                self._obey(decode_to_worker(payload))
        except Exception as exc:  # noqa: BLE001  # out of step with the control process: end
            self._end(exc)

    def _obey(self, message: m.ToWorker) -> None:
        if self._worker is not None:
            self._worker.handle(message)
        elif isinstance(message, m.Configure):
            self._begin(message)
        else:
            raise TypeError("the first message to a worker is its configuration")

    def _begin(self, configure: m.Configure) -> None:
        telemetry.arm(configure.probes)
        intake = Intake(configure.settings.byte_budget)
        self._worker = Worker(
            configure.settings,
            send=self._send,
            transport=partial(transport_for, intake=intake),
            intake=intake,
        )
        self._working = asyncio.ensure_future(self._worker.run())
        self._working.add_done_callback(self._worked)
        self._send(m.Hello(pid=os.getpid()))

    def _refuse(self) -> None:
        """Say who we are, and end: a server of another version would be misread."""
        self._send(m.Hello(pid=os.getpid()))
        if self._transport is not None:
            self._transport.close()

    def _send(self, message: m.ToControl) -> None:
        # Between a hang-up and `connection_lost` there is a loop step in which writing would raise.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def _worked(self, working: asyncio.Task[None]) -> None:
        """The worker drained: its last messages go out before the socket closes. Or it failed."""
        if working.cancelled():
            return
        if (exc := working.exception()) is not None:
            self._end(exc)
        elif self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own name
        if self._working is not None:
            self._working.cancel()
        self._end(None)

    def _end(self, exc: BaseException | None) -> None:
        if self.ended.done():
            return
        if exc is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(exc)


if __name__ == "__main__":
    main()

"""One worker process as the control process sees it: start, talk, watch, kill, reap.

The link knows whether the process lives; when there is to be one is `supervision`'s, and
what its messages mean `local`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from batchline import telemetry
from batchline.domain.ids import BatchId, WorkerId
from batchline.domain.model import ShardKey
from batchline.executor import messages as m
from batchline.executor import processes
from batchline.executor.framing import decode_to_control, frame, read_frame
from batchline.executor.holding import Holding
from batchline.executor.protocol import PROTOCOL, named_in

# Messages to a worker are small; a worker that lets this much pile up does not read any more.
_MAX_UNREAD_BYTES: Final = 64 * 1024 * 1024


class WorkerLink:
    """A started worker. `holding` are the shards that it may be running.

    `trying` are the entries under way in each announced shard. `quarantine`: see `Room`.
    """

    def __init__(
        self,
        worker: WorkerId,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        children: Path,
        quarantine: bool,
    ) -> None:
        self.worker = worker
        self.quarantine = quarantine
        self.holding = Holding()
        self.trying: dict[ShardKey, set[int]] = {}
        self.ready = False
        self.other_version: str | None = None  # what the worker's program calls itself instead
        self.storage_trouble: str | None = None
        self.in_flight: Mapping[str, int] = {}  # by backend, at its last heartbeat
        self.silent_beats = 0
        self.gone = asyncio.Event()  # dead and reaped
        self._process = process
        self._reader = reader
        self._writer = writer
        self._children = children
        self._acks: dict[int, asyncio.Future[m.GateClosed]] = {}
        self._requests = 0

    @classmethod
    async def start(
        cls,
        worker: WorkerId,
        command: Sequence[str],
        *,
        children: Path,
        environment: Mapping[str, str],
        quarantine: bool = False,
    ) -> WorkerLink:
        """Spawn `command --fd N`; the child inherits that socket and nothing else."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--fd",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=dict(environment),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(worker, process, reader, writer, children=children, quarantine=quarantine)

    @property
    def pid(self) -> int:
        return self._process.pid

    # -- talking ---------------------------------------------------------------------------

    def tell(self, message: m.ToWorker) -> None:
        """Send without waiting. A worker that does not read at all is killed, not waited for."""
        if self.gone.is_set() or self._writer.is_closing():
            return
        self._writer.write(frame(message))
        if self._writer.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self.kill()

    async def messages(self, on_message: Callable[[m.ToControl], None]) -> None:
        """Hand each message to `on_message` as it comes; returns when the worker is gone, or turns
        out to be of another version: then nothing that it says has been looked at."""
        while (payload := await read_frame(self._reader)) is not None:
            if not self.ready and (theirs := named_in(payload)) != PROTOCOL:
                self.other_version = theirs
                return
            self.silent_beats = 0
            message = decode_to_control(payload)
            if isinstance(message, m.GateClosed):
                future = self._acks.pop(message.request, None)
                if future is not None and not future.done():
                    future.set_result(message)
            else:
                on_message(message)

    def ask_gate(
        self, batch_id: BatchId, *, grace_s: float, last_s: float
    ) -> asyncio.Future[m.GateClosed]:
        """Tell the worker to close a gate; the future is its acknowledgement.

        The future is cancelled when the worker dies, which closes the gate just as well.
        """
        self._requests += 1
        future: asyncio.Future[m.GateClosed] = asyncio.get_running_loop().create_future()
        if self.gone.is_set():  # and what it said before is still being dealt with
            future.cancel()
            return future
        self._acks[self._requests] = future
        if not telemetry.probe("gate.asking"):
            self.tell(m.CloseGate(batch_id, self._requests, grace_s, last_s))
        return future

    def holds(self, batch_id: BatchId) -> bool:
        return any(key.batch_id == batch_id for key in self.holding.works)

    def backends_of(self, batch_id: BatchId) -> set[str]:
        """Where it may have sent requests of the batch."""
        return {
            name
            for key, work in self.holding.works.items()
            if key.batch_id == batch_id
            for name in work.backends
        }

    # -- life and death --------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL; `gone` is set once the process is reaped."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def reap(self) -> int:
        """Wait for the end of the process; its exit status. Idempotent.

        The socket is closed first, which makes a child that still runs end itself.
        """
        self._writer.close()
        status = await self._process.wait()
        for future in self._acks.values():
            future.cancel()
        self._acks.clear()
        processes.forget(self._children, self.pid)
        self.gone.set()
        return status

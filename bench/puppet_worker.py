"""A worker that answers nothing and costs nothing: it says what a worker says of lines that went.

The control process alone is what is measured with it. It settles each line as it is handed out,
writes a result for it, and offers its results in groups of so many lines; the next line waits until
a group is answered, so that the same shards come in the same groups however fast it goes.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import google_crc32c

from batchline.domain import bitmap
from batchline.domain.ids import BlobName
from batchline.domain.model import BlobKind, BlobRange, Shard, ShardCommit, Usage
from batchline.executor import messages as m
from batchline.executor.contract import Released
from batchline.executor.framing import FrameReader, decode_to_worker, frame

RESULT: Final = b'{"id":"a result that nobody reads"}\n'
_NONE_YET: Final = BlobName("")
_PATIENCE_S: Final = 0.2  # for another shard, before a group goes out that is not full


@dataclass(slots=True)
class _Running:
    """A shard, and how many of its lines went and were committed."""

    shard: Shard
    went: int = 0
    offered: int = 0


@dataclass(slots=True)
class _Puppet:
    """One socket, one segment."""

    link: socket.socket
    group_lines: int
    frames: FrameReader = field(default_factory=FrameReader)
    waiting: deque[_Running] = field(default_factory=deque)  # shards whose lines have not all gone
    group: list[_Running] = field(default_factory=list)
    in_group: int = 0
    answered: bool = True
    segment: int = -1
    name: BlobName = _NONE_YET
    end: int = 0

    def run(self) -> None:
        """Until the control process hangs up."""
        self.link.sendall(frame(m.Hello(pid=os.getpid())))
        while True:
            while not self.waiting:
                # At once what there is, where no more comes for a while.
                if not self._hear(_PATIENCE_S if self.in_group else None) and self.in_group:
                    self._commit()
            self._settle(self.waiting[0])
            if self.in_group >= self.group_lines:
                self._commit()

    def _settle(self, running: _Running) -> None:
        if not self.group or self.group[-1] is not running:
            self.group.append(running)
        lines = min(running.shard.entries - running.went, self.group_lines - self.in_group)
        running.went += lines
        self.in_group += lines
        if running.went == running.shard.entries:
            self.waiting.popleft()
            self._tell(m.Handed(running.shard.key))

    def _commit(self) -> None:
        commits = [self._commit_of(one) for one in self.group]
        done = [one.shard for one in self.group if one.went == one.shard.entries]
        self.group.clear()
        self.in_group = 0
        self.answered = False
        self._tell(m.Commit(commits))
        while not self.answered:
            self._hear(None)
        for shard in done:
            self._tell(m.ShardReleased(Released(key=shard.key, epoch=shard.epoch, settled=True)))

    def _commit_of(self, running: _Running) -> ShardCommit:
        shard, lines = running.shard, running.went
        settled = bitmap.empty(shard.entries)
        settled[: lines // 8] = b"\xff" * (lines // 8)
        if lines % 8:
            settled[lines // 8] = (1 << lines % 8) - 1
        data = RESULT * (lines - running.offered)
        running.offered = lines
        os.pwrite(self.segment, data, self.end)
        start, self.end = self.end, self.end + len(data)
        return ShardCommit(
            key=shard.key,
            epoch=shard.epoch,
            output=BlobRange(
                blob=self.name, start=start, stop=self.end, crc=google_crc32c.value(data)
            ),
            errors=None,
            settled=bytes(settled),
            completed=lines,
            failed=0,
            usage=Usage(input_tokens=9 * lines, output_tokens=3 * lines, total_tokens=12 * lines),
            failed_lines=bytes(len(settled)),
        )

    def _tell(self, message: m.ToControl) -> None:
        self.link.sendall(frame(message))

    def _hear(self, patience_s: float | None) -> bool:
        """Obey what has come, after at most so long; False when nothing did."""
        if not select.select([self.link], [], [], patience_s)[0]:
            return False
        data = self.link.recv(1024 * 1024)
        if not data:
            os._exit(0)
        for payload in self.frames.feed(data):
            self._obey(decode_to_worker(payload))
        return True

    def _obey(self, message: m.ToWorker) -> None:
        match message:
            case m.Configure(settings=settings):
                self.name = BlobName(f"{BlobKind.SEGMENT.value}-{settings.worker}-000001")
                path = Path(settings.segment_directory) / self.name
                self.segment = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            case m.OpenShard(work=work):
                self.waiting.append(_Running(work.shard))
            case m.SetPermits(backend=backend, permits=permits, order=order):
                self._tell(m.PermitsHeld(backend, permits, order))
            case m.Committed():
                self.answered = True
            case m.Drain():
                self._tell(m.Drained())
                os._exit(0)
            case _:
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group-lines", type=int, required=True)
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args()
    with socket.socket(fileno=options.fd) as link:
        _Puppet(link, options.group_lines).run()


if __name__ == "__main__":
    main()

"""Looks at every batch all the time: does one ever step back, does one change after its end?"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import aiohttp

from tests.chaos.caller import Caller
from tests.chaos.records import Batch
from tests.support.invariants import Ended, Look, changed_after_the_end, stepped_back
from tests.support.scripted_backend import BackendControl
from tests.support.server import TERMINAL

LOOK_S: Final = 0.05
PAGE: Final = 10  # newest first: what is not on it has mostly ended
FILES: Final = ("output_file_id", "error_file_id")
NAME: Final = "story"  # the key in a batch's metadata


class Watch:
    """All batches that were ever seen, by id."""

    def __init__(self, caller: Caller, backend: BackendControl) -> None:
        self._caller = caller
        self._backend = backend
        self._reading: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, asyncio.Event] = {}
        self.batches: dict[str, Batch] = {}
        self.looks = 0
        self.deletes: Callable[[Batch], bool] = lambda _: (
            False
        )  # whose files go when they were read

    async def run(self) -> None:
        """Look, for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._pass(tasks)
                await asyncio.sleep(LOOK_S)

    async def _pass(self, tasks: asyncio.TaskGroup) -> None:
        page = await self._caller.call("watch", "GET", f"/v1/batches?limit={PAGE}")
        seen = set()
        for body in page.body["data"] if page is not None and page.status == 200 else ():
            seen.add(body["id"])
            self._note(body, tasks)
        for batch in [b for b in self.batches.values() if b.last.status not in TERMINAL]:
            if batch.id not in seen:
                answer = await self._caller.call("watch", "GET", f"/v1/batches/{batch.id}")
                if answer is not None and answer.status == 200:
                    self._note(answer.body, tasks)

    def _note(self, body: dict[str, Any], tasks: asyncio.TaskGroup) -> None:
        """One look. They come in order: there is one loop, and it waits for each answer."""
        self.looks += 1
        look, now = _look(body), time.time()
        batch = self.batches.get(body["id"])
        if batch is None:
            name = (body["metadata"] or {}).get(NAME, "")
            batch = Batch(id=body["id"], name=name, last=look, last_at=now)
            self.batches[batch.id] = batch
        batch.steps_back += stepped_back(batch.last, look)
        batch.last, batch.last_at = look, now
        if look.status in TERMINAL and batch.body is None and batch.ended is None:
            batch.body = body
            task = tasks.create_task(self._read(batch, body))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)

    async def _read(self, batch: Batch, body: Mapping[str, Any]) -> None:
        """What a batch has left: its files, as soon as it was seen to have ended."""
        if batch.last.status == "cancelled":
            batch.cancelled_read_at = await caught_up(self._backend)
        batch.output, batch.errors = [await self._content(body[name]) for name in FILES]
        batch.ended = ended(body, batch.output, batch.errors)
        if self.deletes(batch):
            batch.files_deleted = True
            for name in FILES:
                if body[name] is not None:
                    path = f"/v1/files/{body[name]}"
                    await self._caller.until_ok("delete", "DELETE", path, gone_is_ok=True)
        self._waiting.pop(batch.id, asyncio.Event()).set()

    async def wait_ended(self, batch_id: str) -> None:
        """Return when the batch has ended and what was to be read of it has been."""
        batch = self.batches.get(batch_id)
        if batch is None or batch.ended is None:
            await self._waiting.setdefault(batch_id, asyncio.Event()).wait()

    async def settled(self) -> None:
        """Return when nothing is being read or deleted any more."""
        while self._reading:
            await asyncio.wait(self._reading)

    def unended(self) -> list[Batch]:
        return [batch for batch in self.batches.values() if batch.ended is None]

    async def changes(self, batches: Iterable[Batch]) -> list[str]:
        """Read these ended batches once more; what is different now."""
        found = []
        for batch in batches:
            answer = await self._caller.until_ok("watch", "GET", f"/v1/batches/{batch.id}")
            files = [
                None if batch.files_deleted else await self._content(answer.body[name])
                for name in FILES
            ]
            assert batch.ended is not None
            found += [
                f"{batch.id}: changed after its end: {change}"
                for change in changed_after_the_end(batch.ended, ended(answer.body, *files))
            ]
        return found

    async def _content(self, file_id: str | None) -> bytes | None:
        if file_id is None:
            return None
        path = f"/v1/files/{file_id}/content"
        return (await self._caller.until_ok("download", "GET", path)).content


async def caught_up(backend: BackendControl) -> float | None:
    """When the backend had read all that was sent until now; None while it cannot be asked."""
    try:
        async with asyncio.timeout(2.0):
            return await backend.caught_up()
    except (aiohttp.ClientError, TimeoutError):
        return None


def ended(body: Mapping[str, Any], output: bytes | None, errors: bytes | None) -> Ended:
    return Ended(body=json.dumps(body, sort_keys=True), output=_hash(output), errors=_hash(errors))


def _hash(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _look(body: Mapping[str, Any]) -> Look:
    counts = body["request_counts"]
    return Look(
        status=body["status"],
        total=counts["total"],
        completed=counts["completed"],
        failed=counts["failed"],
    )

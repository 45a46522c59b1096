"""Customers: they upload, create, cancel and delete, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from itertools import count
from typing import Final

import aiohttp

from tests.chaos.caller import AGAIN_S, Caller
from tests.chaos.records import Batch, Order
from tests.chaos.schedule import Job
from tests.chaos.watch import NAME, Watch, caught_up
from tests.support.inputs import line_id, make_lines
from tests.support.invariants import Cancelled, Created, Story
from tests.support.scripted_backend import BackendControl

CREATE: Final = {"endpoint": "/v1/chat/completions"}


class Customers:
    """What they ordered, in `orders`. No two have a line in common."""

    def __init__(self, caller: Caller, watch: Watch, backend: BackendControl) -> None:
        self._caller = caller
        self._watch = watch
        self._backend = backend
        self._numbers = count()
        self._next_line = 0
        self._deleting: set[str] = set()  # names whose files go in the end
        self.orders: dict[str, Order] = {}
        self.closing = False
        watch.deletes = self._deletes

    def _deletes(self, batch: Batch) -> bool:
        return batch.name in self._deleting

    async def buy(self, jobs: Iterator[Job]) -> None:
        """One job after the other, until `closing`."""
        for job in jobs:
            if self.closing:
                return
            await self._order(job)

    async def _order(self, job: Job) -> None:
        order = self._new(job)
        file_id = await self._upload(order)
        if file_id is None:
            return
        await self._create(job, order, file_id)
        batch_id = order.story.batch_id
        if batch_id is None:
            return  # what came of it is seen by the watch, if anything did
        if job.deletes_input:
            path = f"/v1/files/{file_id}"
            await self._caller.until_ok("delete", "DELETE", path, gone_is_ok=True)
        if job.cancel_after_s is not None:
            await asyncio.sleep(job.cancel_after_s)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(job.cancels):
                    tasks.create_task(self._cancel(order.story, batch_id))
        await self._watch.wait_ended(batch_id)

    def _new(self, job: Job) -> Order:
        first, self._next_line = self._next_line, self._next_line + job.lines
        delay = f"[[delay={job.delay_s}]]"
        order = Order(
            story=Story(
                name=f"{next(self._numbers)}",
                ids=[line_id(number) for number in range(first, first + job.lines)],
            ),
            content=make_lines(
                job.lines, start=first, markers=(lambda _: delay) if job.delay_s else None
            ),
        )
        if job.deletes_files:
            self._deleting.add(order.story.name)
        return order

    async def _upload(self, order: Order) -> str | None:
        """The file's id; None when the customers are to go home first."""
        while not self.closing:
            form = aiohttp.FormData()
            form.add_field("purpose", "batch")
            form.add_field("file", order.content, filename="input.jsonl")
            answer = await self._caller.call("uploading", "POST", "/v1/files", form=form)
            if answer is not None and answer.status == 200:
                return str(answer.body["id"])
            assert answer is None or answer.status >= 500, answer
            await asyncio.sleep(AGAIN_S)
        return None

    async def _create(self, job: Job, order: Order, file_id: str) -> None:
        """One create, once: what was not answered may have happened, or not."""
        story = order.story
        self.orders[story.name] = order
        window = "1 fortnight" if job.is_wrong else job.window
        body = {
            **CREATE,
            "input_file_id": file_id,
            "completion_window": window,
            "metadata": {NAME: story.name},
        }
        answer = await self._caller.call("creating", "POST", "/v1/batches", body=body)
        if answer is None:
            return
        if answer.status == 200:
            story.created, story.batch_id = Created.ANSWERED, answer.body["id"]
        else:
            assert answer.status >= 500 or (job.is_wrong and answer.status == 400), answer
            story.created = Created.REFUSED

    async def _cancel(self, story: Story, batch_id: str) -> None:
        """Ask until there is an answer."""
        while True:
            answer = await self._caller.call("cancelling", "POST", f"/v1/batches/{batch_id}/cancel")
            if answer is not None and answer.status == 200:
                told_at = time.time()
                read_at = await caught_up(self._backend)
                story.cancels.append(Cancelled(told_at=told_at, read_at=read_at))
                return
            if answer is not None and answer.status < 500:
                code = json.loads(answer.content)["error"]["message"]
                assert answer.status == 409, f"{answer.status} {code}"  # it has ended
                return
            await asyncio.sleep(AGAIN_S)

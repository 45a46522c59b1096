"""The life of a batch where its row and what is asked of it cross; the rest is tests/model."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from batchline.domain.ids import BatchId, FileId, ProjectId
from batchline.domain.lifecycle import BatchStatus, Stopping
from batchline.domain.model import Batch
from batchline.executor.contract import GateReport
from batchline.service.runner import Runner, StopSettings


def a_batch(status: BatchStatus) -> Batch:
    return Batch(
        id=BatchId("batch_1"),
        project_id=ProjectId("p"),
        sequence=1,
        endpoint="/v1/completions",
        completion_window="24h",
        input_file_id=FileId("file-1"),
        status=status,
        stopping=Stopping.CANCEL if status is not BatchStatus.VALIDATING else None,
        created_at=1,
        expires_at=2**40,
    )


class Rig:
    """A runner, and a row that is `stored` but read as it was when `looked` began."""

    def __init__(self) -> None:
        self.stored = a_batch(BatchStatus.VALIDATING)
        self.planned: list[Batch] = []
        self.looked = asyncio.Event()
        self.go = asyncio.Event()
        self.ended = asyncio.Event()
        nothing = GateReport(acknowledged_s=0.0, backends=(), killed=(), lets_go_s=0.0)
        executor = SimpleNamespace(
            close_gate=self._answering(nothing), forget_gate=lambda _: self.ended.set()
        )
        scheduler = SimpleNamespace(
            find=lambda _: None, stop=lambda _: None, deactivate=lambda _: None
        )
        parts: list[Any] = [
            SimpleNamespace(
                load_batch=self._load,
                put_receipt=self._answering(None),
                unfinished_batches=self._answering([self.stored]),
            ),
            executor,
            scheduler,
            SimpleNamespace(plan=self._plan),
            SimpleNamespace(take_back_damaged=self._same),
            SimpleNamespace(finalize=self._finalize),
        ]
        self.runner = Runner(*parts, settings=StopSettings())

    @staticmethod
    def _answering(answer: object) -> Any:
        async def call(*_: object, **__: object) -> object:
            return answer

        return call

    async def _load(self, _: object) -> Batch:
        found = self.stored
        self.looked.set()
        await self.go.wait()
        return found

    async def _plan(self, batch: Batch) -> bool:
        self.planned.append(batch)
        await asyncio.Event().wait()  # a huge file
        return True

    async def _same(self, batch: Batch) -> Batch:
        return batch

    async def _finalize(self, _: object, *, known: Batch) -> Batch:
        assert known.status is BatchStatus.CANCELLING
        self.stored = a_batch(BatchStatus.CANCELLED)
        return self.stored


async def test_a_cancel_that_overtakes_the_look_at_the_row_has_no_file_validated() -> None:
    rig = Rig()
    await rig.runner.resume()
    async with asyncio.timeout(30):
        await rig.looked.wait()  # the row is read, and the answer is on its way
        rig.stored = a_batch(BatchStatus.CANCELLING)
        await rig.runner.stop(rig.stored, was=BatchStatus.VALIDATING)
        rig.go.set()
        await rig.ended.wait()
    assert rig.planned == []


async def test_a_cancel_right_behind_the_create_has_no_file_validated() -> None:
    rig = Rig()
    rig.go.set()
    rig.runner.created(rig.stored)  # and its row is not read for that
    rig.stored = a_batch(BatchStatus.CANCELLING)
    async with asyncio.timeout(30):
        await rig.runner.stop(rig.stored, was=BatchStatus.VALIDATING)
        await rig.ended.wait()
    assert rig.planned == []


@pytest.mark.parametrize("status", [BatchStatus.VALIDATING, BatchStatus.CANCELLING])
async def test_a_request_that_ends_after_the_close_has_no_batch_taken_up(
    status: BatchStatus,
) -> None:
    """The children are about to be ended: a validation would fail for it, and its batch too."""
    rig = Rig()
    await rig.runner.close()
    batch = a_batch(status)
    if status is BatchStatus.VALIDATING:
        rig.runner.created(batch)
    else:
        assert await rig.runner.stop(batch, was=BatchStatus.IN_PROGRESS) == {}
    assert rig.runner.unfinished() == []

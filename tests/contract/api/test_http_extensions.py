"""The routes that the service does not have: `docs/compatibility.md`, the rules X…"""

from __future__ import annotations

import pytest

from batchline.domain.ids import DEFAULT_PROJECT
from batchline.domain.lifecycle import BatchEvent, BatchStatus
from batchline.store.database import Database
from tests.contract.api.serving import ApiServer
from tests.contract.store_rows import brought_to, finalized, moved

# -- receipt -------------------------------------------------------------------------------------


@pytest.mark.rule("X1")
async def test_a_receipt_is_there_from_the_cancel_on_and_grows(
    api: ApiServer, store: Database
) -> None:
    batch = await brought_to(store, BatchStatus.IN_PROGRESS)
    await api.request("POST", f"/v1/batches/{batch.id}/cancel")
    reply = await api.request("GET", f"/v1/batches/{batch.id}/receipt")
    assert reply.status == 200
    asked = {
        "object": "batch.receipt",
        "batch_id": batch.id,
        "status": "cancelling",
        "requested_at": int(api.clock.now),
        "requested_by": {"project_id": DEFAULT_PROJECT, "key_id": None},
    }
    open_ends = {
        "acknowledged_ms": None,
        "in_flight_at_acknowledgement": None,
        "workers_killed": None,
        "quiet": None,
        "quiet_ms": None,
        "lines_finished": None,
        "lines_aborted": None,
        "lines_never_sent": None,
    }
    assert reply.json == {**asked, **open_ends}
    assert list(reply.json) == [*asked, *open_ends]
    known = {"quiet": True, "lines_finished": 3, "workers_killed": [], "of_a_newer_version": 1}
    await store.put_receipt(batch.id, known)
    await finalized(store, await store.load_batch(batch.id))
    del known["of_a_newer_version"]
    reply = await api.request("GET", f"/v1/batches/{batch.id}/receipt")
    assert reply.json == {**asked, **open_ends, **known, "status": "cancelled"}


@pytest.mark.rule("X1")
@pytest.mark.parametrize(
    "status",
    [
        BatchStatus.VALIDATING,
        BatchStatus.IN_PROGRESS,
        BatchStatus.COMPLETED,
        BatchStatus.FAILED,
        BatchStatus.EXPIRED,
    ],
)
async def test_a_batch_that_nobody_cancelled_has_no_receipt(
    api: ApiServer, store: Database, status: BatchStatus
) -> None:
    batch = await brought_to(store, status)
    reply = await api.request("GET", f"/v1/batches/{batch.id}/receipt")
    assert reply.status == 404
    assert reply.error["message"] == f"Batch '{batch.id}' was never cancelled."


@pytest.mark.rule("X1")
async def test_a_cancel_whose_receipt_was_lost_still_says_when(
    api: ApiServer, store: Database
) -> None:
    batch = await brought_to(store, BatchStatus.IN_PROGRESS)
    batch = await moved(store, batch, BatchEvent.CANCEL_REQUESTED)
    reply = await api.request("GET", f"/v1/batches/{batch.id}/receipt")
    assert reply.json["requested_at"] == batch.cancelling_at
    assert reply.json["requested_by"] is None

"""What a create that leaves something out gets from its project's settings, on both databases."""

from __future__ import annotations

import pytest

from batchline.domain.errors import KeyReused
from batchline.domain.ids import DEFAULT_PROJECT, ProjectId
from batchline.service.batches import Batches, BatchSettings
from batchline.store.contract import Store
from tests.contract.api.serving import RecordingRunner
from tests.contract.store_rows import NOW

ORDER = {
    "input_file_id": "file-none",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
EACH, ONCE = ({**ORDER, "identical_requests": value} for value in ("run_each", "run_once"))


def batches(store: Store, *run_once: str) -> Batches:
    settings = BatchSettings(run_once_projects=frozenset(run_once))
    return Batches(store, RecordingRunner(), clock=lambda: NOW, settings=settings)


@pytest.mark.rule("X11")
async def test_identical_requests_run_once_where_the_project_or_the_batch_says_so(
    store: Store, other_project: ProjectId
) -> None:
    of_other = batches(store, "other")
    for project_id, order, runs_once in (
        (other_project, ORDER, True),
        (other_project, {**ORDER, "identical_requests": None}, True),
        (other_project, EACH, False),
        (DEFAULT_PROJECT, ORDER, False),
        (DEFAULT_PROJECT, ONCE, True),
    ):
        batch = await of_other.create(project_id, order)
        assert batch.run_once is runs_once
        found = await store.get_batch(project_id, batch.id)
        assert found is not None
        assert found.run_once is runs_once
    assert (await batches(store, "default").create(DEFAULT_PROJECT, ORDER)).run_once
    assert not (await batches(store).create(other_project, ORDER)).run_once


@pytest.mark.rule("X11")
async def test_a_batch_keeps_what_it_was_created_under_whatever_the_settings_are_later(
    store: Store,
) -> None:
    first = await batches(store, "default").create(DEFAULT_PROJECT, ORDER, idempotency_header="k")
    assert first.run_once
    later = batches(store)
    assert (await later.get(DEFAULT_PROJECT, first.id)).run_once
    # The same order under the same key is the same batch, not another one and no conflict.
    again = await later.create(DEFAULT_PROJECT, ORDER, idempotency_header="k")
    assert (again.id, again.run_once) == (first.id, True)
    for other in (EACH, ONCE):
        with pytest.raises(KeyReused):
            await later.create(DEFAULT_PROJECT, other, idempotency_header="k")

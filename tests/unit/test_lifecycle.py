"""The table of transitions: every pair, what follows from it, and its second statement in the docs.

Parameters come from the enums and the table, so a new status or event is tested before anyone
remembers to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import get_args

import openai.types
import pytest

from batchline.domain.lifecycle import (
    BY_STOPPING,
    STOPS,
    TERMINAL,
    TRANSITIONS,
    BatchEvent,
    BatchStatus,
    Stopping,
    advance,
    sources,
)
from batchline.domain.model import Batch

S, E = BatchStatus, BatchEvent

DOC = Path(__file__).parents[2] / "docs" / "lifecycle.md"

PAIRS = list(product(BatchStatus, BatchEvent))
REASONS = [None, *Stopping]

# A batch as the machine sees it: its status, and why it is stopping.
State = tuple[BatchStatus, Stopping | None]

CREATED: State = (S.VALIDATING, None)


def after(state: State, event: BatchEvent) -> State | None:
    """The state after `event`, as the store writes it; None when it is not allowed."""
    status, stopping = state
    target = advance(status, event, stopping)
    return None if target is None else (target, STOPS.get(event, stopping))


def reachable(start: State) -> set[State]:
    """Every state that some sequence of events leads to from `start`, itself included."""
    found = {start}
    todo = [start]
    while todo:
        state = todo.pop()
        for event in BatchEvent:
            following = after(state, event)
            if following is not None and following not in found:
                found.add(following)
                todo.append(following)
    return found


ALIVE = sorted(
    (state for state in reachable(CREATED) if state[0] not in TERMINAL),
    key=lambda state: (state[0], state[1] or ""),
)


# -- the wire ------------------------------------------------------------------------------------


def test_the_statuses_are_those_of_the_official_client() -> None:
    annotation = openai.types.Batch.model_fields["status"].annotation
    assert sorted(get_args(annotation)) == sorted(BatchStatus)


def test_every_status_has_its_instant_in_the_batch() -> None:
    ours = {field.name for field in fields(Batch)}
    theirs = set(openai.types.Batch.model_fields)
    for status in set(BatchStatus) - {S.VALIDATING}:
        assert f"{status}_at" in ours & theirs


# -- every pair ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "event"), PAIRS)
def test_a_pair_leads_where_the_table_says_and_nowhere_else(
    status: BatchStatus, event: BatchEvent
) -> None:
    targets = TRANSITIONS.get((status, event))
    reached = {advance(status, event, stopping) for stopping in REASONS}
    if targets is None:
        assert reached == {None}
        assert status not in sources(event)
    else:
        assert reached - {None} == targets
        assert status in sources(event)


@pytest.mark.parametrize(("status", "event"), sorted(TRANSITIONS))
def test_only_where_finalizing_leads_depends_on_what_stopped_the_batch(
    status: BatchStatus, event: BatchEvent
) -> None:
    if (status, event) == (S.FINALIZING, E.FILES_WRITTEN):
        ends = {stopping: advance(status, event, stopping) for stopping in REASONS}
        assert ends == {
            None: S.COMPLETED,
            Stopping.WINDOW: S.EXPIRED,
            Stopping.INPUT_LOST: S.FAILED,
            Stopping.CANCEL: None,  # a cancel moves it to CANCELLING itself
        }
    elif (status, event) == (S.FINALIZING, E.RESULTS_DAMAGED):
        following = {stopping: advance(status, event, stopping) for stopping in REASONS}
        assert following == {
            None: S.IN_PROGRESS,
            Stopping.WINDOW: S.FINALIZING,
            Stopping.INPUT_LOST: S.FINALIZING,
            Stopping.CANCEL: None,
        }
    else:
        assert len({advance(status, event, stopping) for stopping in REASONS}) == 1


@pytest.mark.parametrize("event", list(BatchEvent))
def test_the_sources_of_an_event_are_computed_from_the_table(event: BatchEvent) -> None:
    assert sources(event) == {status for status in BatchStatus if (status, event) in TRANSITIONS}
    assert sources(event)


# -- terminal ------------------------------------------------------------------------------------


def test_terminal_is_what_no_event_changes() -> None:
    """Computed here by walking, there from the table, and spelled out once."""
    stays = {
        status
        for status in BatchStatus
        if all(
            advance(status, event, stopping) in (None, status)
            for event in BatchEvent
            for stopping in REASONS
        )
    }
    assert stays == TERMINAL == {S.COMPLETED, S.FAILED, S.EXPIRED, S.CANCELLED}


def test_every_status_is_reached_and_no_living_batch_is_stuck() -> None:
    assert {status for status, _ in reachable(CREATED)} == set(BatchStatus)
    for state in ALIVE:
        assert any(status in TERMINAL for status, _ in reachable(state)), state


# -- cancel and the window -----------------------------------------------------------------------


@pytest.mark.parametrize("state", ALIVE)
def test_a_cancel_of_a_batch_that_is_not_terminal_ends_cancelled(state: State) -> None:
    cancelled = after(state, E.CANCEL_REQUESTED)
    assert cancelled == (S.CANCELLING, Stopping.CANCEL)
    ends = {status for status, _ in reachable(cancelled) if status in TERMINAL}
    assert ends == {S.CANCELLED}


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_a_cancel_of_a_terminal_batch_is_refused_or_a_repetition(status: BatchStatus) -> None:
    expected = S.CANCELLED if status is S.CANCELLED else None
    assert advance(status, E.CANCEL_REQUESTED) is expected


@pytest.mark.parametrize("stopping", REASONS)
@pytest.mark.parametrize("status", [S.CANCELLING, S.CANCELLED])
def test_the_window_closing_never_undoes_a_cancel(
    status: BatchStatus, stopping: Stopping | None
) -> None:
    assert advance(status, E.WINDOW_CLOSED, stopping) is None


def test_the_window_closing_never_turns_a_finished_batch_into_an_expired_one() -> None:
    finished = after((S.IN_PROGRESS, None), E.ALL_LINES_FINISHED)
    assert finished == (S.FINALIZING, None)
    assert after(finished, E.WINDOW_CLOSED) is None


def test_a_batch_is_stopped_by_its_window_once() -> None:
    stopped = [state for state in reachable(CREATED) if state[1] is not None]
    assert stopped
    assert [state for state in stopped if after(state, E.WINDOW_CLOSED) is not None] == []


def test_a_batch_that_its_window_stopped_is_never_completed() -> None:
    stopped = after((S.IN_PROGRESS, None), E.WINDOW_CLOSED)
    assert stopped == (S.FINALIZING, Stopping.WINDOW)
    assert after(stopped, E.FILES_WRITTEN) == (S.EXPIRED, Stopping.WINDOW)
    ends = {status for status, _ in reachable(stopped) if status in TERMINAL}
    assert ends == {S.EXPIRED, S.CANCELLED, S.FAILED}


def test_a_running_batch_has_an_open_gate() -> None:
    """`stopping` is null exactly until something stops the batch."""
    for status, stopping in reachable(CREATED):
        if status in (S.VALIDATING, S.IN_PROGRESS, S.COMPLETED):
            assert stopping is None
        if status in (S.CANCELLING, S.CANCELLED, S.EXPIRED):
            assert stopping is not None


# -- the document --------------------------------------------------------------------------------


def cells_of(heading: str) -> list[tuple[str, ...]]:
    """The rows of the table below `heading` of the document, without code marks."""
    section = DOC.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    return [tuple(cell.strip().replace("`", "") for cell in row.split("|")) for row in rows[1:]]


def stopping_cell(word: str, stopping: Stopping | None) -> str:
    return f"{word} {'null' if stopping is None else stopping}"


def rows_of_the_code() -> Iterator[tuple[str, ...]]:
    for (status, event), targets in TRANSITIONS.items():
        if len(targets) > 1:
            assert targets == set(BY_STOPPING[event].values())
            for stopping, target in BY_STOPPING[event].items():
                yield status, event, target, stopping_cell("is", stopping)
        else:
            (target,) = targets
            stops = STOPS.get(event)
            cell = "stays" if stops is None else stopping_cell("becomes", stops)
            yield status, event, target, cell


def test_the_table_in_the_docs_is_the_table_in_the_code() -> None:
    """If this fails, decide which of the two is right; both are read as the rule."""
    assert sorted(cells_of("Transitions")) == sorted(rows_of_the_code())


def test_the_statuses_in_the_docs_are_those_of_the_code() -> None:
    expected = [
        (
            str(status),
            "yes" if status in TERMINAL else "no",
            "created_at" if status is S.VALIDATING else f"{status}_at",
        )
        for status in BatchStatus
    ]
    assert cells_of("Statuses") == expected

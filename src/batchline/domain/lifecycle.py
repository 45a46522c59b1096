"""The life of a batch: statuses, events, and the one table that says what may follow what.

Every other place asks `advance`; nobody else compares statuses to find out what is allowed.
`docs/lifecycle.md` states the same table for readers, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class BatchStatus(StrEnum):
    """The wire's eight statuses (openai-python, `types/batch.py`); there are no others."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class BatchEvent(StrEnum):
    """What can happen to a batch; the names are ours."""

    VALIDATED = "validated"
    REFUSED = "refused"
    ALL_LINES_FINISHED = "all_lines_finished"
    CANCEL_REQUESTED = "cancel_requested"
    WINDOW_CLOSED = "window_closed"
    INPUT_LOST = "input_lost"
    RESULTS_DAMAGED = "results_damaged"
    FILES_WRITTEN = "files_written"


class Stopping(StrEnum):
    """Why a batch's gate is closed; kept beside the status, never shown on the wire."""

    CANCEL = "cancel"
    WINDOW = "window"
    INPUT_LOST = "input_lost"


S, E = BatchStatus, BatchEvent

# FILES_WRITTEN leaves FINALIZING by what stopped the batch: nothing, the window, or a lost input.
FINALIZED_AS: Final[Mapping[Stopping | None, BatchStatus]] = MappingProxyType(
    {
        None: S.COMPLETED,
        Stopping.WINDOW: S.EXPIRED,
        Stopping.INPUT_LOST: S.FAILED,
    }
)

# RESULTS_DAMAGED: committed results were damaged on disk. A batch that nothing stopped runs their
# lines again; of one that was stopped they become lines without a result.
RUN_AGAIN_AS: Final[Mapping[Stopping | None, BatchStatus]] = MappingProxyType(
    {
        None: S.IN_PROGRESS,
        Stopping.WINDOW: S.FINALIZING,
        Stopping.INPUT_LOST: S.FINALIZING,
    }
)

TRANSITIONS: Final[Mapping[tuple[BatchStatus, BatchEvent], frozenset[BatchStatus]]] = (
    MappingProxyType(
        {
            (S.VALIDATING, E.VALIDATED): frozenset({S.IN_PROGRESS}),
            (S.VALIDATING, E.REFUSED): frozenset({S.FAILED}),
            (S.VALIDATING, E.CANCEL_REQUESTED): frozenset({S.CANCELLING}),
            (S.VALIDATING, E.WINDOW_CLOSED): frozenset({S.EXPIRED}),
            (S.IN_PROGRESS, E.ALL_LINES_FINISHED): frozenset({S.FINALIZING}),
            (S.IN_PROGRESS, E.CANCEL_REQUESTED): frozenset({S.CANCELLING}),
            (S.IN_PROGRESS, E.WINDOW_CLOSED): frozenset({S.FINALIZING}),
            (S.IN_PROGRESS, E.INPUT_LOST): frozenset({S.FINALIZING}),
            # The finalizer's compare-and-set then fails; it re-reads and ends CANCELLED.
            (S.FINALIZING, E.CANCEL_REQUESTED): frozenset({S.CANCELLING}),
            (S.FINALIZING, E.RESULTS_DAMAGED): frozenset(RUN_AGAIN_AS.values()),
            (S.FINALIZING, E.FILES_WRITTEN): frozenset(FINALIZED_AS.values()),
            (S.CANCELLING, E.CANCEL_REQUESTED): frozenset({S.CANCELLING}),  # repeated: a no-op
            # The never-run lines cannot be written any more: the batch ends with what was settled.
            (S.FINALIZING, E.INPUT_LOST): frozenset({S.FINALIZING}),
            (S.CANCELLING, E.INPUT_LOST): frozenset({S.CANCELLING}),
            (S.CANCELLING, E.RESULTS_DAMAGED): frozenset({S.CANCELLING}),
            (S.CANCELLING, E.FILES_WRITTEN): frozenset({S.CANCELLED}),
            (S.CANCELLED, E.CANCEL_REQUESTED): frozenset({S.CANCELLED}),  # repeated: a no-op, 200
        }
    )
)

# Where the target depends on what stopped the batch.
BY_STOPPING: Final[Mapping[BatchEvent, Mapping[Stopping | None, BatchStatus]]] = MappingProxyType(
    {E.FILES_WRITTEN: FINALIZED_AS, E.RESULTS_DAMAGED: RUN_AGAIN_AS}
)

# Statuses that no event changes; computed, never listed again.
TERMINAL: Final = frozenset(
    status
    for status in BatchStatus
    if not any(
        source is status and targets != {status} for (source, _), targets in TRANSITIONS.items()
    )
)


# Which event sets `stopping`, and to what. A cancel may replace a closed window; see `advance`.
STOPS: Final[Mapping[BatchEvent, Stopping]] = MappingProxyType(
    {
        E.CANCEL_REQUESTED: Stopping.CANCEL,
        E.WINDOW_CLOSED: Stopping.WINDOW,
        E.INPUT_LOST: Stopping.INPUT_LOST,
    }
)


def advance(
    status: BatchStatus, event: BatchEvent, stopping: Stopping | None = None
) -> BatchStatus | None:
    """The status after `event`, or None when `status` does not allow it.

    `stopping` is the batch's own column and decides only where FINALIZING leads. The window closing
    on a batch whose gate is already closed is not allowed (None), so it can never undo a cancel.
    """
    targets = TRANSITIONS.get((status, event))
    if targets is None:
        return None
    if len(targets) == 1:
        return next(iter(targets))
    return BY_STOPPING[event].get(stopping)


def sources(event: BatchEvent) -> frozenset[BatchStatus]:
    """The statuses in which `event` is allowed."""
    return frozenset(status for status, other in TRANSITIONS if other is event)

"""Why a batch does not go on: a decision over what is known of workers, disk, backends and turns.

Pure. `progress.py` gathers the facts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from batchline.domain.ids import BatchId
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.waiting import Reason, WaitCode

_ROOM: Final = "the disk of the data directory is nearly full; it goes on once there is room"
_WRITING: Final = "a worker cannot write results, and tries again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One reason, with a sentence for people (without a stop at its end)."""

    code: WaitCode
    message: str
    backend: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the server, at one moment, for all batches.

    `gated` says of backends why lines wait for them, `away` why lines of which models do. `limits`
    are how many requests each may have in flight. `being_checked` are the batches whose input files
    are read now; None: not known.
    """

    failing: str | None = None
    ready_workers: int = 1
    paused: str | None = None
    storage_trouble: str | None = None
    has_backends: bool = True
    limits: Mapping[str, int] = field(default_factory=dict)
    gated: Mapping[str, Reason] = field(default_factory=dict)
    away: Mapping[str, Mapping[str, Reason]] = field(default_factory=dict)
    being_checked: Collection[BatchId] | None = None


def of_server(known: Known, *, validating: bool = False) -> list[Wait]:
    """What no batch goes on for, whatever it is. Validation needs no worker and no backend."""
    waits = []
    if known.paused is not None:
        waits.append(Wait(code=WaitCode.DISK_LOW, message=_ROOM))
    if validating:
        return waits
    if known.failing is not None:
        waits.append(Wait(code=WaitCode.NO_WORKER, message=known.failing))
    elif known.ready_workers == 0:
        waits.append(Wait(code=WaitCode.NO_WORKER, message="no worker process is ready yet"))
    if known.storage_trouble is not None:
        message = f"{_WRITING} ({known.storage_trouble})"
        waits.append(Wait(code=WaitCode.STORAGE_TROUBLE, message=message))
    if not known.has_backends:
        waits.append(Wait(code=WaitCode.NO_BACKEND, message="the settings name no backend"))
    return waits


def of_batch(
    status: BatchStatus,
    known: Known,
    *,
    serving: Mapping[str, Sequence[str]],
    others_first: bool,
    unlisted: Collection[str] = (),
    checked_later: bool = False,
) -> Sequence[Wait]:
    """Why nothing, or nothing of one of its models, goes on; empty when nothing is in the way.

    `serving` are the backends that may serve it, for each model with lines left, by the backends'
    name for it; `unlisted` are those of them that nobody lists and no worker has lines of.
    `others_first`: there are shards to hand out, no worker has one, and all room is
    taken by other batches.
    `checked_later`: it is validating, and other files are read first.
    """
    if status is BatchStatus.VALIDATING:
        message = "its input file is being checked"
        if checked_later:
            message = "its input file waits for its turn to be checked"
        reading = Wait(code=WaitCode.VALIDATING, message=message)
        return [*of_server(known, validating=True), reading]
    if status is not BatchStatus.IN_PROGRESS:
        return []
    waits = of_server(known)
    for model, backends in serving.items():
        # One that lists the model no more, and that lines of it were given to, is waited for too.
        lost = [name for name, away in known.away.items() if model in away] if not backends else ()
        in_the_way = [_of_backend(name, model, known) for name in (*backends, *lost)]
        # A line goes to whichever backend takes it: all of them have to be in the way.
        waits += [wait for wait in in_the_way if wait is not None and None not in in_the_way]
        if model in unlisted and not in_the_way and known.has_backends:
            message = f"no backend lists model {model} any more; its lines go on when one does"
            waits.append(Wait(code=WaitCode.MODEL_UNLISTED, message=message))
    if others_first and not waits:
        message = "other batches are served first"
        waits.append(Wait(code=WaitCode.OTHERS_FIRST, message=message))
    return list(dict.fromkeys(waits))


def _of_backend(name: str, model: str, known: Known) -> Wait | None:
    reason = known.gated.get(name) or known.away.get(name, {}).get(model)
    if reason is None:
        return None
    return Wait(code=reason.code, message=f"backend {name} {reason.text}", backend=name)

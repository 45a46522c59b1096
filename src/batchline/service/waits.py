"""Why a batch does not go on: a decision over what is known of workers, disk, backends and turns.

Pure. `progress.py` gathers the facts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from batchline.domain.attempts import Outcome
from batchline.domain.ids import BatchId
from batchline.domain.lifecycle import BatchStatus


class WaitCode(StrEnum):
    """What a batch waits for; stable, for programs."""

    VALIDATING = "validating"
    NO_WORKER = "no_worker"
    DISK_LOW = "disk_low"
    STORAGE_TROUBLE = "storage_trouble"
    NO_BACKEND = "no_backend"
    BACKEND_UNREACHABLE = "backend_unreachable"
    BACKEND_SHED = "backend_shed"
    BACKEND_REFUSED = "backend_refused"
    MODEL_AWAY = "model_away"
    RATE_LIMIT = "rate_limit"
    BACKEND_WAITING = "backend_waiting"
    OTHERS_FIRST = "others_first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One reason, with a sentence for people (without a stop at its end)."""

    code: WaitCode
    message: str
    backend: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the server, at one moment, for all batches.

    `gated` says of backends why lines wait for them: `outcome: reason`. `away` says of backends why
    lines of which models wait for them, in the same form. `limits` are how many requests each may
    have in flight. `being_checked` are the batches whose input files are read now; None: not known.
    """

    failing: str | None = None
    ready_workers: int = 1
    paused: str | None = None
    storage_trouble: str | None = None
    has_backends: bool = True
    limits: Mapping[str, int] = field(default_factory=dict)
    gated: Mapping[str, str] = field(default_factory=dict)
    away: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    being_checked: Collection[BatchId] | None = None


_BY_OUTCOME: Final = MappingProxyType(
    {
        Outcome.NOT_SENT.value: WaitCode.BACKEND_UNREACHABLE,
        Outcome.SHED.value: WaitCode.BACKEND_SHED,
        Outcome.BLOCKED.value: WaitCode.BACKEND_REFUSED,
        Outcome.AWAY.value: WaitCode.MODEL_AWAY,
        "rate limit": WaitCode.RATE_LIMIT,  # as the rate desk spells it
    }
)


def of_server(known: Known, *, validating: bool = False) -> list[Wait]:
    """What no batch goes on for, whatever it is. Validation needs no worker and no backend."""
    waits = []
    if known.paused is not None:
        waits.append(Wait(code=WaitCode.DISK_LOW, message=f"disk: {known.paused}"))
    if validating:
        return waits
    if known.failing is not None:
        waits.append(Wait(code=WaitCode.NO_WORKER, message=known.failing))
    elif known.ready_workers == 0:
        waits.append(Wait(code=WaitCode.NO_WORKER, message="no worker process is ready"))
    if known.storage_trouble is not None:
        message = f"disk: {known.storage_trouble}"
        waits.append(Wait(code=WaitCode.STORAGE_TROUBLE, message=message))
    if not known.has_backends:
        waits.append(Wait(code=WaitCode.NO_BACKEND, message="the server has no backend"))
    return waits


def of_batch(
    status: BatchStatus,
    known: Known,
    *,
    serving: Mapping[str, Sequence[str]],
    others_first: bool,
    checked_later: bool = False,
) -> Sequence[Wait]:
    """Why nothing, or nothing of one of its models, goes on; empty when nothing is in the way.

    `serving` are the backends that may serve it, for each model with lines left, by the backends'
    name for it. `others_first`: there are shards to hand out, no worker has one, and all room is
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
    if others_first and not waits:
        message = "other batches are served first"
        waits.append(Wait(code=WaitCode.OTHERS_FIRST, message=message))
    return list(dict.fromkeys(waits))


def _of_backend(name: str, model: str, known: Known) -> Wait | None:
    gated = known.gated.get(name)
    of = ""
    if gated is None:
        gated = known.away.get(name, {}).get(model)
        of = f" model {model}:"
    if gated is None:
        return None
    code = _BY_OUTCOME.get(gated.partition(":")[0], WaitCode.BACKEND_WAITING)
    return Wait(code=code, message=f"backend {name}:{of} {gated}", backend=name)

"""Cancels of running batches, seen by the caller and by the backend.

First at random moments of a batch at full speed. Then with a thousand requests in flight at a
backend that does not answer in time, in each way that requests can be ended: how long until the
200, and until the backend is rid of the last one.

The backend's stamps are the kernel's, so that a request counts by when it came and not by when a
busy process got around to reading it. The cancels are plain HTTP for the same reason: the 200 is
stamped as it is read from the socket.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bench.fast_backend import MODEL
from bench.report import Floor, Measurement, Row, Table, percentile
from bench.rig import DELAY_S, IN_FLIGHT, Api, Rig, common_settings

CANCELS: Final = 50
LINES: Final = 20_000
_LEAST_LINES: Final = 4_000  # fewer could be over before a cancel arrives
_POLL_S: Final = 0.002
_SEED: Final = 7

MANY_IN_FLIGHT: Final = 1_000
_GRACE_S: Final = 0.5
_NO_ANSWER_S: Final = 120.0
_MOST_TO_200_MS: Final = 50
_MOST_TO_QUIET_MS: Final = 1_000  # past the grace


@dataclass(frozen=True, slots=True)
class Way:
    """How a backend is left, how many times, and when it would have answered.

    Each is a backend of its own to the server, and a model of its own; behind them is one.
    """

    cancel: str
    cancels: int
    grace_s: float
    answers_s: float = _NO_ANSWER_S

    def __str__(self) -> str:
        return f"{self.cancel}, grace {self.grace_s:g} s"

    @property
    def model(self) -> str:
        return f"{MODEL}-{self.cancel}"

    def backend(self, base_url: str) -> dict[str, object]:
        """Its table in the settings."""
        call = {"abort_call": {"path": "/abort_request", "id_field": "rid"}}
        return {
            "name": self.model,
            "base_url": base_url,
            "models": [self.model],
            "max_in_flight": MANY_IN_FLIGHT,
            "cancel": self.cancel,
            **(call if self.cancel == "call" else {}),
        }


WITH_GRACE: Final = (
    Way("close", 20, _GRACE_S),
    Way("call", 50, _GRACE_S),
    Way("drain", 50, _GRACE_S, answers_s=2 * _GRACE_S),
)
AT_ONCE: Final = (Way("close", 200, 0.0),)


def measure(rig: Rig) -> Measurement:
    """Each cancel has a batch of its own."""
    lines = rig.size.lines(LINES, least=_LEAST_LINES)
    moments = random.Random(_SEED)  # noqa: S311  # a schedule, not a secret
    cancels = _times(rig, CANCELS)
    many: dict[Way, list[dict[str, float]]] = {}
    with rig.with_kernel_stamps() as stamped:
        with _serving(stamped, WITH_GRACE) as serving, serving.api() as api:
            file_id = serving.uploaded(lines)
            found = [_cancel(serving, api, file_id, lines, moments) for _ in range(cancels)]
            many |= {way: list(_of_many(serving, api, way)) for way in WITH_GRACE}
        with _serving(stamped, AT_ONCE) as serving, serving.api() as api:
            many |= {way: list(_of_many(serving, api, way)) for way in AT_ONCE}
    rows = [
        _row("the call: 200, gates closed", [one["acknowledged_ms"] for one in found]),
        _row("last request to reach the backend", [one["last_write_ms"] for one in found]),
        _row("`cancelled` seen", [one["cancelled_ms"] for one in found]),
    ]
    late = sum(one["arrivals_after_200"] for each in (found, *many.values()) for one in each)
    title = f"{cancels} cancels of {lines:,} lines, {IN_FLIGHT} in flight: ms since the call"
    return Measurement(
        tables=[Table(title, rows), *(_table(way, each) for way, each in many.items())],
        floors=[
            Floor("requests that reached the backend after the 200", late, at_most=0),
            *(floor for way, each in many.items() for floor in _floors(way, each)),
        ],
        raw={
            "lines": lines,
            "cancels": found,
            "of_many": {str(way): each for way, each in many.items()},
        },
    )


@contextmanager
def _serving(rig: Rig, ways: Sequence[Way]) -> Iterator[Rig]:
    """A server with a backend for each way, beside the usual one; they have one grace."""
    backends = common_settings(rig.backend)["backend"]
    assert isinstance(backends, list)
    settings = {
        "cancel": {"grace_s": ways[0].grace_s},
        "backend": [*backends, *(way.backend(rig.backend.base_url) for way in ways)],
    }
    with rig.with_fresh_server(f"grace-{ways[0].grace_s:g}", settings=settings) as serving:
        yield serving


def _times(rig: Rig, whole: int) -> int:
    return max(2, round(whole * min(1.0, rig.size.percent / 100)))


def _row(what: str, values: list[float]) -> Row:
    return {
        "until": what,
        "median": percentile(values, 50),
        "p99": percentile(values, 99),
        "most": max(values),
    }


# -- at full speed -----------------------------------------------------------------------------


def _cancel(
    rig: Rig, api: Api, file_id: str, lines: int, moments: random.Random
) -> dict[str, float]:
    moment = moments.randint(1, lines // 2)
    rig.backend.reset(DELAY_S)
    batch_id = rig.create(file_id).id
    while rig.backend.stats().arrivals < moment:
        time.sleep(_POLL_S)
    return {"after_arrivals": moment, **_cancelled(rig, api, batch_id, lines)}


def _cancelled(rig: Rig, api: Api, batch_id: str, lines: int) -> dict[str, float]:
    """Cancel a running batch and see it end.

    Raises:
        RuntimeError: something of it is in flight after its end.
    """
    called_ns = time.time_ns()
    api.call("POST", f"/v1/batches/{batch_id}/cancel")
    told_ns = time.time_ns()
    rig.wait(batch_id, "cancelled", lines=lines, poll_s=_POLL_S)
    cancelled_ns = time.time_ns()
    seen = rig.backend.stats(after_ns=told_ns)
    if seen.in_flight:
        raise RuntimeError(f"{seen.in_flight} requests are in flight after `cancelled`")
    if seen.unstamped:
        raise RuntimeError("the kernel did not stamp every request")
    return {
        "acknowledged_ms": (told_ns - called_ns) / 1e6,
        "last_write_ms": (seen.last_arrival_ns - called_ns) / 1e6,
        "quiet_ms": (max(seen.last_answer_ns, seen.last_leave_ns) - called_ns) / 1e6,
        "cancelled_ms": (cancelled_ns - called_ns) / 1e6,
        "arrivals_after_200": seen.arrivals_after,
        "left": seen.aborted,
        "answered": seen.answered,
        "called_off": seen.called_off,
    }


# -- a thousand in flight ----------------------------------------------------------------------


def _of_many(rig: Rig, api: Api, way: Way) -> Iterator[dict[str, float]]:
    file_id = rig.uploaded(2 * MANY_IN_FLIGHT, model=way.model)
    for _ in range(_times(rig, way.cancels)):
        rig.backend.reset(way.answers_s)
        batch_id = rig.create(file_id).id
        while rig.backend.stats().in_flight < MANY_IN_FLIGHT:
            time.sleep(_POLL_S)
        one = _cancelled(rig, api, batch_id, 2 * MANY_IN_FLIGHT)
        if one["left"] + one["answered"] != MANY_IN_FLIGHT:
            raise RuntimeError(f"not every request in flight came to an end: {one}")
        yield one


def _table(way: Way, found: list[dict[str, float]]) -> Table:
    counts = ", ".join(
        f"{sum(one[name] for one in found):,.0f} {what}"
        for name, what in (("left", "closed"), ("called_off", "called"), ("answered", "answered"))
    )
    title = (
        f"{way}: {len(found)} cancels with {MANY_IN_FLIGHT:,} in flight ({counts}): ms since the"
        " call"
    )
    return Table(
        title,
        [
            _row("the call: 200, gates closed", [one["acknowledged_ms"] for one in found]),
            _row("the backend is rid of the last request", [one["quiet_ms"] for one in found]),
            _row("`cancelled` seen", [one["cancelled_ms"] for one in found]),
        ],
    )


def _floors(way: Way, found: list[dict[str, float]]) -> list[Floor]:
    to_200 = percentile([one["acknowledged_ms"] for one in found], 99)
    # A backend that is drained is quiet when it has answered, and not a moment before.
    waits_s = way.answers_s if way.cancel == "drain" else way.grace_s
    to_quiet = percentile([one["quiet_ms"] for one in found], 99) - 1_000 * waits_s
    return [
        Floor(f"{way}: ms to the 200 (p99)", to_200, at_most=_MOST_TO_200_MS),
        Floor(f"{way}: ms to quiet past that (p99)", to_quiet, at_most=_MOST_TO_QUIET_MS),
    ]

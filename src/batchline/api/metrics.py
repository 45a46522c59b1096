"""`/metrics` in Prometheus' text format: the server as readiness shows it, and the running batches
of the project that asks (docs/decisions/0028-time-left.md).

Written by hand: a scrape shows what is in memory at this moment, so there is no registry to keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from batchline import __version__
from batchline.api.request import project_of
from batchline.api.services import Readiness, services
from batchline.service.progress import Progress

CONTENT_TYPE: Final = "text/plain"
MAX_BATCHES: Final = 500  # the oldest; a dozen series each is what a scrape should hold

_PREFIX: Final = "batchline_"
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

Sample = tuple[dict[str, str], float | None]

router = APIRouter()


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    parts = services(request)
    batches = parts.progress.running(project_of(request), limit=MAX_BATCHES)
    text = "".join([*_of_server(parts.readiness()), *_of_batches(batches)])
    return Response(text, headers={"content-type": f"{CONTENT_TYPE}; version=0.0.4; charset=utf-8"})


def _of_server(now: Readiness) -> Iterator[str]:
    yield _gauge("build_info", "The version that runs.", [({"version": __version__}, 1)])
    yield _gauge("ready", "1 when batches can be taken and run.", [({}, now.ready)])
    yield _gauge("workers", "Worker processes that are ready.", [({}, now.workers_running)])
    yield _gauge("workers_wanted", "Worker processes of the settings.", [({}, now.workers_wanted)])
    yield _gauge(
        "backend_up",
        "1 while lines go to the backend; state says why not.",
        [({"backend": one.name, "state": one.state}, one.state == "up") for one in now.backends],
    )
    yield _gauge("disk_free_bytes", "Of the data directory's disk.", [({}, now.disk_free_bytes)])
    yield _gauge("disk_ok", "0 while the disk keeps lines waiting.", [({}, now.disk == "ok")])
    yield _metric(
        "damaged_total",
        "counter",
        "Stored bytes that were found damaged since the start.",
        [({}, now.damaged)],
    )


def _of_batches(batches: Sequence[Progress]) -> Iterator[str]:
    """Those in progress: a batch has its series from its start to its end."""
    named: list[tuple[dict[str, str], Progress]] = [
        ({"batch_id": one.batch.id}, one) for one in batches
    ]
    yield _gauge(
        "batch_lines",
        "Lines of a running batch, by what became of them.",
        [
            ({**labels, "state": state}, count)
            for labels, one in named
            for state, count in (
                ("completed", one.counts.completed),
                ("failed", one.counts.failed),
                ("left", one.counts.total - one.counts.completed - one.counts.failed),
            )
        ],
    )
    yield _gauge(
        "batch_lines_per_second",
        "Its rate of the last minute.",
        [(labels, one.rates.lines_per_s) for labels, one in named if one.rates is not None],
    )
    yield _gauge(
        "batch_tokens_per_second",
        "Tokens of its answers and prompts, of the last minute.",
        [(labels, one.rates.tokens_per_s) for labels, one in named if one.rates is not None],
    )
    yield _gauge(
        "batch_expected_end_timestamp_seconds",
        "When it may be done; four times in five between low and high.",
        [
            ({**labels, "bound": bound}, round(one.at + left_s, 3))
            for labels, one in named
            if one.left is not None
            for bound, left_s in (
                ("low", one.left.least),
                ("likely", one.left.likely),
                ("high", one.left.most),
            )
        ],
    )
    yield _gauge(
        "batch_expires_timestamp_seconds",
        "When its window closes.",
        [(labels, one.batch.expires_at) for labels, one in named],
    )
    yield _gauge(
        "batch_waiting",
        "1 for each reason why it does not go on.",
        [
            ({**labels, "reason": wait.code.value, "backend": wait.backend or ""}, 1)
            for labels, one in named
            for wait in one.waits
        ],
    )


def _gauge(name: str, text: str, samples: Iterable[Sample]) -> str:
    return _metric(name, "gauge", text, samples)


def _metric(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    """One family, also when it has no series now. None as a value is no sample."""
    lines = [f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} {kind}"]
    lines += [
        f"{_PREFIX}{name}{_labels(labels)} {_number(value)}"
        for labels, value in samples
        if value is not None
    ]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    pairs = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _number(value: float) -> str:
    """Whole numbers as such: a timestamp keeps its seconds."""
    return str(int(value)) if value == int(value) else repr(float(value))

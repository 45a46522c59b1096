"""One look at a backend: whether it answers, and whether what answers is the backend.

A proxy (nginx, Envoy, a cloud's load balancer) answers for a backend that it cannot reach with a
page of its own: 502, 503, 504 or a number of its vendor, without the error that an OpenAI API has
in its body. So does none of the engines for a fault of theirs (decision 0031).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from batchline.domain import results
from batchline.domain.errors import NotSent, SentUnanswered, UpstreamError
from batchline.executor.transport.contract import Transport

LOOK_S: Final = 2.0  # a backend that lives lists its models in milliseconds

FULL: Final = 503  # some proxies say so of a backend that is away, others of one that is full
_BY_PROXIES: Final = frozenset({502, 503, 504, *range(520, 528), 530})  # from 520 on: Cloudflare's


def page_of(status: int, usable_body: bytes | None) -> int:
    """The status of an answer that may be a proxy's, in the place of the backend's; else 0.

    `usable_body` is the answer's body where it is JSON.
    """
    if status not in _BY_PROXIES:
        return 0
    return 0 if usable_body is not None and results.has_error(usable_body) else status


def said_by_proxy(page: int) -> str:
    """What a page says, for people."""
    return f"a proxy answers {page} for it"


class Found(StrEnum):
    """What a look finds."""

    ALIVE = "alive"  # it answers, whatever it says
    REFUSES = "refuses"  # nothing could be sent
    SILENT = "silent"  # it took the question, and no answer came
    PAGE = "page"  # a proxy answers for it


@dataclass(frozen=True, slots=True)
class Look:
    """`reason` is for people, and empty of a backend that is alive."""

    found: Found
    reason: str = ""


async def look_at(transport: Transport) -> Look:
    """Ask the backend for its models; never raises for its faults."""
    try:
        answer = await transport.get_json("/models", timeout_s=LOOK_S)
    except SentUnanswered as exc:
        return Look(Found.SILENT, exc.message) if exc.is_cut_off else Look(Found.ALIVE)
    except NotSent as exc:
        return Look(Found.REFUSES, exc.message)
    except UpstreamError as exc:
        return Look(Found.SILENT, exc.message)
    page = page_of(answer.status, results.usable_body(answer.body))
    return Look(Found.PAGE, said_by_proxy(page)) if page else Look(Found.ALIVE)

"""What an inference engine's metrics page says of its load. Pure.

Read by two: the probe asks how many requests an engine has in hand, the limiter how many of them
are not ours and how long a token takes. A page may be large (vLLM's is 100 KB and more, nearly all
of it histograms), and the control process reads one twice a second: names are searched for, and
nothing else of the page is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

METRICS: Final = "/metrics"  # at the root of the server, not below /v1
_MOST: Final = 1e15  # of anything that is counted here; more is nonsense
_MOST_REQUESTS: Final = 1e6  # at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How an engine calls what is wanted. Of several names for one thing the first found counts.

    `token_gap` is a histogram of the time between two tokens of a request that is written at every
    step; one that is written when a request ends would tell of times long past.
    """

    running: bytes
    waiting: bytes
    kv_use: Sequence[bytes] = ()
    token_gap: Sequence[bytes] = ()


NAMES: Final[Mapping[str, Names]] = MappingProxyType(
    {
        "vLLM": Names(
            running=b"vllm:num_requests_running",
            waiting=b"vllm:num_requests_waiting",
            kv_use=(b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
            token_gap=(
                b"vllm:inter_token_latency_seconds",
                b"vllm:time_per_output_token_seconds",
            ),
        ),
        "SGLang": Names(
            running=b"sglang:num_running_reqs",
            waiting=b"sglang:num_queue_reqs",
            kv_use=(b"sglang:token_usage",),
            token_gap=(b"sglang:inter_token_latency_seconds",),
        ),
        "llama.cpp": Names(
            running=b"llamacpp:requests_processing",
            waiting=b"llamacpp:requests_deferred",
            kv_use=(b"llamacpp:kv_cache_usage_ratio",),
        ),
        "TGI": Names(running=b"tgi_batch_current_size", waiting=b"tgi_queue_size"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """One look at a page. `gaps` and `gap_s` count up: how many times between two tokens there
    were since the engine started, and their sum; None where the page has none."""

    running: int
    waiting: int
    kv_use: float | None = None
    gaps: float | None = None
    gap_s: float | None = None


def read_load(page: bytes, engine: str | None = None) -> EngineLoad | None:
    """The load by a Prometheus page, over all models and processes on it.

    Of `engine` only, where one is given. None: the page is no known engine's.
    """
    for name, names in NAMES.items():
        if engine not in (None, name):
            continue
        running = _total(page, names.running, most=_MOST_REQUESTS)
        if running is None:
            continue
        gap = next((one for one in names.token_gap if _total(page, one + b"_count")), None)
        return EngineLoad(
            running=round(running),
            waiting=round(_total(page, names.waiting, most=_MOST_REQUESTS) or 0.0),
            kv_use=_highest(page, names.kv_use),
            gaps=None if gap is None else _total(page, gap + b"_count"),
            gap_s=None if gap is None else _total(page, gap + b"_sum"),
        )
    return None


def _total(page: bytes, name: bytes, *, most: float = _MOST) -> float | None:
    """The sum of the samples of one metric; None when there are none, or one is no count."""
    values = _samples(page, name)
    total = sum(values) if values and all(value >= 0 for value in values) else math.nan
    return total if total <= most else None  # also None for what is no number


def _highest(page: bytes, names: Sequence[bytes]) -> float | None:
    """The fullest of all: one process without room makes requests wait.

    What is no part of a whole is not looked at: a page that counts in percent would be full for
    ever, and the limit would stay where it began.
    """
    values = next((found for name in names if (found := _samples(page, name))), [])
    return max((value for value in values if 0 <= value <= 1), default=None)


def _samples(page: bytes, name: bytes) -> list[float]:
    values = []
    at = page.find(name)
    while at != -1:
        after = at + len(name)
        # Not in a comment, and not the beginning of a longer name. (Before the line's end is looked
        # for: of a page that is one line of names that would be all of it, each time.)
        begins = at == 0 or page[at - 1 : at] == b"\n"
        if begins and page[after : after + 1] in (b"{", b" ", b"\t"):
            stop = page.find(b"\n", after)
            line = page[after : stop if stop != -1 else len(page)]
            words = line.rpartition(b"}")[2].split()  # a time may follow the value
            try:
                values.append(float(words[0]) if words else math.nan)
            except ValueError:
                values.append(math.nan)
        at = page.find(name, after)
    return values

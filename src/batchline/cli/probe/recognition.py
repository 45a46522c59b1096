"""Which engine a backend is, and how many requests it says that it has in hand. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

# Asked for at the root of the server, where each engine has pages of its own.
PAGES: Final = ("/version", "/metrics", "/slots", "/props", "/api/version", "/info")

METRICS: Final = "/metrics"
SLOTS: Final = "/slots"

# Requests in hand by the engine's metrics: those that run, and those that wait for a place.
_GAUGES: Final[Mapping[str, Sequence[str]]] = {
    "vLLM": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    "SGLang": ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    "llama.cpp": ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    "TGI": ("tgi_batch_current_size", "tgi_queue_size"),
}
_OWNERS: Final = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp", "library": "Ollama"}
_SAMPLE: Final = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^\n]*\})?[ \t]+(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a backend is. `name` is None when nothing told; `told_by` are the pages that did.

    `gauge_page` is where `in_hand` reads how many requests it has, None when nowhere. `places` is
    how many it runs at once, where it says so.
    """

    name: str | None = None
    version: str | None = None
    told_by: Sequence[str] = ()
    gauge_page: str | None = None
    places: int | None = None


def recognized(owners: Sequence[str], pages: Mapping[str, bytes]) -> Engine:
    """The engine by the owners of its models and by the pages (of `PAGES`) that were answered."""
    metrics = _text(pages.get(METRICS))
    votes = [(one, METRICS) for one in _GAUGES if in_hand_by_metrics(metrics, one) is not None]
    if slots_in_hand(pages.get(SLOTS)) is not None:
        votes.append(("llama.cpp", SLOTS))
    info, props = _object(pages.get("/info")), _object(pages.get("/props"))
    if "max_concurrent_requests" in info:
        votes.append(("TGI", "/info"))
    if "total_slots" in props:
        votes.append(("llama.cpp", "/props"))
    votes += [(_OWNERS[one], "/v1/models") for one in dict.fromkeys(owners) if one in _OWNERS]
    # Others imitate this page of Ollama's: it counts only where nothing else is known.
    if not votes and "version" in _object(pages.get("/api/version")):
        votes.append(("Ollama", "/api/version"))
    if not votes:
        return Engine()
    name = votes[0][0]
    return Engine(
        name=name,
        version=_version(name, pages, info),
        told_by=[page for one, page in votes if one == name],
        gauge_page=next((page for one, page in votes if one == name and page in _READ), None),
        places=_whole(props.get("total_slots"))
        or _whole(info.get("max_concurrent_requests"))
        or _count(pages.get(SLOTS)),
    )


def in_hand(engine: Engine, page: bytes) -> int | None:
    """How many requests the engine has by its `gauge_page`; None when the page does not tell."""
    if engine.gauge_page == SLOTS:
        return slots_in_hand(page)
    return None if engine.name is None else in_hand_by_metrics(_text(page), engine.name)


def in_hand_by_metrics(text: str, engine: str) -> int | None:
    """Running and waiting requests, over all models and processes of a Prometheus page."""
    names = _GAUGES.get(engine, ())
    found = [(name, value) for name, value in _SAMPLE.findall(text) if name in names]
    if not any(name == names[0] for name, _ in found):
        return None
    try:
        return round(sum(float(value) for _, value in found))
    except (ValueError, OverflowError):
        return None


def slots_in_hand(page: bytes | None) -> int | None:
    """llama.cpp's slots that are at work, in its older and its newer spelling."""
    slots = _decoded(page)
    if not isinstance(slots, list) or not slots or not all(isinstance(s, dict) for s in slots):
        return None
    if not all("is_processing" in slot or "state" in slot for slot in slots):
        return None
    return sum(bool(slot.get("is_processing", slot.get("state"))) for slot in slots)


_READ: Final = (METRICS, SLOTS)


def _version(name: str, pages: Mapping[str, bytes], info: Mapping[str, Any]) -> str | None:
    page = _object(pages.get("/api/version" if name == "Ollama" else "/version"))
    version = page.get("version", info.get("version"))
    return version if isinstance(version, str) and len(version) < 100 else None


def _whole(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _count(page: bytes | None) -> int | None:
    slots = _decoded(page)
    return len(slots) if slots_in_hand(page) is not None and isinstance(slots, list) else None


def _text(page: bytes | None) -> str:
    return (page or b"").decode(errors="replace")


def _object(page: bytes | None) -> Mapping[str, Any]:
    value = _decoded(page)
    return value if isinstance(value, dict) else {}


def _decoded(page: bytes | None) -> object:
    try:
        return msgspec.json.decode(page or b"null")
    except (ValueError, RecursionError):
        return None

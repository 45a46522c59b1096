"""Which engine a backend is, and how many requests it says that it has in hand. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from batchline.executor.engine_load import METRICS, NAMES, read_load

# Asked for at the root of the server, where each engine has pages of its own.
PAGES: Final = ("/version", "/metrics", "/slots", "/props", "/api/version", "/info")

SLOTS: Final = "/slots"

_OWNERS: Final = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp", "library": "Ollama"}


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
    metrics = pages.get(METRICS) or b""
    votes = [(one, METRICS) for one in NAMES if read_load(metrics, one) is not None]
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
    load = None if engine.name is None else read_load(page, engine.name)
    return None if load is None else load.running + load.waiting


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


def _object(page: bytes | None) -> Mapping[str, Any]:
    value = _decoded(page)
    return value if isinstance(value, dict) else {}


def _decoded(page: bytes | None) -> object:
    try:
        return msgspec.json.decode(page or b"null")
    except (ValueError, RecursionError):
        return None

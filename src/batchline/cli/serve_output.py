"""What `batchline serve` says about itself: plain text, readable in one look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from batchline import __version__
from batchline.config.reach import is_loopback
from batchline.config.settings import Settings
from batchline.executor.catalogue import BackendReport, Reach
from batchline.executor.discovery import Found, Place

_MODELS_SHOWN: Final = 4  # hosted APIs list hundreds
_INDENT: Final = " " * 13


def start_up(
    settings: Settings, backends: Sequence[BackendReport], *, port: int, has_keys: bool
) -> str:
    """The start-up block, without a newline at its end. `port` is the one that is listened on.

    The line `listening on http://HOST:PORT` stands alone, for people and for scripts.
    """
    url = address(settings.server.host, port)
    return "\n".join(
        [
            f"Batchline {__version__}",
            f"listening on {url}",
            f"data in      {settings.server.data_dir}",
            f"keys         {_keys(settings, has_keys)}",
            f"workers      {settings.workers}",
            *_backends(backends),
            "",
            *_what_next(backends, url, has_keys=has_keys),
        ]
    )


def _keys(settings: Settings, has_keys: bool) -> str:
    if has_keys:
        return "every request needs one"
    if is_loopback(settings.server.host):
        return "none: this machine only, and everybody on it"
    return "NONE, AND OTHERS CAN REACH IT: whoever does, may do everything"


def address(host: str, port: int) -> str:
    """The server's address as a client writes it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def discovery(found: Sequence[Found], places: Sequence[Place]) -> str:
    """What the look at the usual places gave, in a sentence or two."""
    if found:
        names = ", ".join(f"{one.backend.name} at {one.backend.base_url}" for one in found)
        return f"No backend was named. Found on this machine: {names}"
    ports = ", ".join(f"{place.port} ({place.product})" for place in places)
    return f"No backend was named, and none answers on this machine: tried ports {ports}."


def _backends(backends: Sequence[BackendReport]) -> list[str]:
    if not backends:
        return ["backends     none: batches will wait for one"]
    lines = []
    for n, backend in enumerate(backends):
        label = _INDENT if n else "backends     "
        lines.append(f"{label}{backend.name} at {backend.base_url}: {_state(backend)}")
        if backend.models:
            lines.append(f"{_INDENT}  models: {_short(backend.models)}")
    return lines


def _state(backend: BackendReport) -> str:
    match backend.reach:
        case Reach.UNKNOWN:
            return "has not answered yet"
        case Reach.UNREACHABLE:
            return f"UNREACHABLE ({backend.trouble}); its lines wait"
        case Reach.REACHABLE if backend.trouble is not None:
            return f"answers, but {backend.trouble}"
        case Reach.REACHABLE:
            return "answers"


def _short(models: Sequence[str]) -> str:
    more = len(models) - _MODELS_SHOWN
    shown = ", ".join(models[:_MODELS_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _what_next(backends: Sequence[BackendReport], url: str, *, has_keys: bool) -> list[str]:
    if not backends:
        return [
            "Start an inference server and then this one again, or name one:",
            "  batchline serve --upstream http://HOST:PORT",
        ]
    key = "sk-bl-…" if has_keys else "none"
    return [
        "Any OpenAI client works against it, with another base URL:",
        f'  client = openai.OpenAI(base_url="{url}/v1", api_key="{key}")',
    ]

"""What a person, a script and a settings file get to see of a probe."""

from __future__ import annotations

import json
from typing import Any

from batchline.cli.probe.probing import Advice, Found
from batchline.cli.probe.verdicts import Closing
from batchline.executor.contract import CancelBy

_LABEL = 16
_MANY_MODELS = 5
_SGLANG_CALL = 'abort_call = { path = "/abort_request", id_field = "rid" }'


def as_text(found: Found, advice: Advice, *, api_key_env: str | None) -> str:
    """Facts one a line, then the settings."""
    engine = found.engine
    told = f" (by {', '.join(dict.fromkeys(engine.told_by))})" if engine.name else ""
    facts = [
        ("backend", found.base_url),
        (
            "engine",
            " ".join(filter(None, (engine.name or "not recognized", engine.version))) + told,
        ),
        ("models", _models(found)),
        ("probed", f"{found.endpoint} with {found.model}, {found.requests} requests"),
        ("streams", found.stream_trouble or "yes, with their usage"),
        ("close, whole", _said(found.whole)),
        ("close, streamed", _said(found.streamed)),
        ("hard closes", _stood(found)),
    ]
    lines = [f"{label:<{_LABEL}}{text}" for label, text in facts]
    return "\n".join([*lines, "", f"# {advice.because}", snippet(found, advice, api_key_env)])


def snippet(found: Found, advice: Advice, api_key_env: str | None) -> str:
    """The backend's table for the settings file."""
    settings = {
        "base_url": found.base_url,
        **({} if api_key_env is None else {"api_key_env": api_key_env}),
        "cancel": advice.cancel.value,
        "stops_on_close": advice.stops_on_close,
        "stream": advice.stream,
        **({} if advice.max_in_flight is None else {"max_in_flight": advice.max_in_flight}),
    }
    # JSON spells texts, numbers and booleans as TOML does.
    lines = ["[[backend]]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    if advice.cancel is CancelBy.CALL:
        lines.append(_SGLANG_CALL)
    return "\n".join(lines)


def as_shape(found: Found, advice: Advice) -> dict[str, Any]:
    """The same as one JSON object."""
    return {
        "base_url": found.base_url,
        "engine": found.engine.name,
        "engine_version": found.engine.version,
        "models": list(found.models),
        "model": found.model,
        "endpoint": str(found.endpoint),
        "streams": found.stream_trouble is None,
        "stream_trouble": found.stream_trouble,
        "close_whole": _shape_of(found.whole),
        "close_streamed": _shape_of(found.streamed),
        "hard_closes": found.closes,
        "broken": found.broken,
        "requests": found.requests,
        "settings": {
            "cancel": advice.cancel.value,
            "stops_on_close": advice.stops_on_close,
            "stream": advice.stream,
            "max_in_flight": advice.max_in_flight,
        },
        "because": advice.because,
    }


def _models(found: Found) -> str:
    shown = ", ".join(found.models[:_MANY_MODELS]) or "none listed"
    more = len(found.models) - _MANY_MODELS
    return shown if more <= 0 else f"{shown} and {more} more"


def _said(closing: Closing) -> str:
    words = {"proven": "stops the generation, proven", "refuted": "does not stop it"}
    return f"{words.get(closing.verdict, 'unknown')} ({closing.evidence})"


def _stood(found: Found) -> str:
    if not found.closes:
        return "not tried: requests are answered before they can be closed"
    if found.broken is None:
        return f"it still answers after {found.closes}"
    return f"BROKEN after {found.closes}: {found.broken}"


def _shape_of(closing: Closing) -> dict[str, str]:
    return {"verdict": closing.verdict.value, "evidence": closing.evidence}

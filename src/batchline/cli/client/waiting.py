"""Why a batch does not go on, from its object and the server's account of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_RUNNING: Final = frozenset({"validating", "in_progress"})


def reasons(batch: Mapping[str, Any], readiness: Mapping[str, Any] | None) -> Sequence[str]:
    """A sentence each; none for a batch that runs or has ended, or when nothing is known.

    A batch with a model waits for the backends that have it or may have it, not for others.
    """
    if readiness is None or batch["status"] not in _RUNNING:
        return []
    found = [str(reason).rstrip(".") for reason in readiness.get("reasons", ())]
    disk = readiness.get("disk", {}).get("state", "ok")
    if disk != "ok":
        found.append(f"disk: {disk}")
    backends = readiness.get("backends", [])
    if not backends and not found:
        found.append("the server has no backend")
    model = batch.get("model")
    concerned = [one for one in backends if model is None or model in (one["models"] or [model])]
    if backends and not concerned:
        found.append(f"no backend serves the model '{model}'")
    if concerned and not any(one["state"] == "up" for one in concerned):
        found += [f"backend {one['name']}: {one['reason'] or one['state']}" for one in concerned]
    return found

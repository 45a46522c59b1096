"""A backend's server at its root, where engines have pages of their own."""

from __future__ import annotations

from dataclasses import replace

from batchline.executor.contract import BackendSettings


def at_root(backend: BackendSettings, *, answer_s: float, most_bytes: int) -> BackendSettings:
    """The same server without `/v1`, for pages of at most so many bytes that come in that time."""
    return replace(
        backend,
        base_url=backend.base_url.removesuffix("/v1"),
        connect_timeout_s=answer_s,
        total_timeout_s=answer_s,
        max_answer_bytes=most_bytes,
    )

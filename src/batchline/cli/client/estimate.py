"""The time left as a server has it, whatever the clock of this machine says."""

from __future__ import annotations

from batchline.cli.client.api import Shape
from batchline.domain.forecast import TimeLeft


def left_of(progress: Shape) -> TimeLeft | None:
    """Of what `Api.progress` gave; None when the server cannot tell."""
    if progress["expected_end_at"] is None:
        return None
    now = progress["at"]
    return TimeLeft(
        likely=max(0, progress["expected_end_at"] - now),
        least=max(0, progress["expected_end_low"] - now),
        most=max(0, progress["expected_end_high"] - now),
    )

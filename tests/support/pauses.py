"""How long to pause between two looks after something that no event tells of.

A look by the official client is 5 ms of processor, half of it the server's, and it is to get on
with what is waited for: at 10 ms between looks, a third of a core. So the pauses grow with what
was waited already; what is seen is then seen 5 % late on average, 0.05 s at most.
"""

from __future__ import annotations

import time
from typing import Final

POLL_S: Final = 0.01
MOST_S: Final = 0.1
OF_THE_WAIT: Final = 0.1


def pause(began: float) -> None:
    """Pause before the next look; `began` is when the waiting did (`time.monotonic()`)."""
    waited_s = time.monotonic() - began
    time.sleep(min(MOST_S, max(POLL_S, OF_THE_WAIT * waited_s)))

"""What ends a command in order, and what ends it at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def on_signals(stopping: asyncio.Event, at_once: Callable[[], None]) -> None:
    """Set `stopping` at the first SIGTERM, SIGINT or SIGHUP; `at_once` at a later one of the first
    two.

    A terminal that is closed sends SIGHUP, often twice (the kernel and the shell): it never counts
    as a second signal. Under nohup it stays ignored.
    """

    def stop() -> None:
        if stopping.is_set():
            at_once()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stopping.set)

"""What ends a command in order, and what ends it at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable


def at_once_until_then(exit_code: int) -> None:
    """Have Ctrl-C end this process at once, until `on_signals` says otherwise.

    Seconds pass until then, most of them in imports, and Python drops a KeyboardInterrupt that
    meets it in a callback of the import system: who had pressed Ctrl-C would see the command go on.
    Where somebody has SIGINT ignored it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(exit_code))


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

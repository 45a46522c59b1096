"""Whether the database answers, from the calls that are made of it anyway; safe between threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from batchline.domain.errors import StoreUnavailable

_SLOW_S: Final = 2.0  # a call that takes longer is trouble before it has failed
_TOLD_FOR_S: Final = 15.0  # where nobody calls any more, a failure is news for so long


class StoreHealth:
    """What went wrong last, until a call of the same kind works again."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[int, float] = {}  # thread to when its call began
        self._failed: dict[bool, tuple[float, str]] = {}  # by whether it writes

    @contextmanager
    def watching(self, *, writes: bool) -> Iterator[None]:
        """Around one call, on the thread that makes it."""
        me = threading.get_ident()
        with self._lock:
            self._running[me] = self._clock()
        try:
            yield
        except StoreUnavailable as exc:
            with self._lock:
                self._failed[writes] = (self._clock(), exc.message)
            raise
        else:
            if self._failed:
                with self._lock:
                    self._failed.pop(writes, None)
        finally:
            with self._lock:
                del self._running[me]

    def trouble(self) -> str | None:
        """What is wrong, in words for people; None when nothing is known to be."""
        now = self._clock()
        with self._lock:
            failed = [why for at, why in self._failed.values() if now - at < _TOLD_FOR_S]
            slowest_s = max((now - began for began in self._running.values()), default=0.0)
        if failed:
            return failed[0]
        if slowest_s > _SLOW_S:
            return f"the database has not answered for {slowest_s:.0f} s"
        return None

"""What Python objects a block of code makes: at its peak, and what is left of it."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Allocated:
    """Bytes of Python objects of the whole process, beyond those before the block."""

    peak: int = 0
    kept: int = 0


@contextmanager
def allocated() -> Iterator[Allocated]:
    """Count what the block allocates, in every thread; filled in when it ends."""
    found = Allocated()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield found
        _, peak = tracemalloc.get_traced_memory()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        found.peak, found.kept = peak - before, after - before
    finally:
        tracemalloc.stop()

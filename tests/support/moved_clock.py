"""The program with a wall clock that a test sets: `python -m tests.support.moved_clock FILE …`.

FILE has how many seconds the clock is ahead; it is read at every look at the clock. Only this
process has it, which is the one that decides by wall time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def _install(path: Path) -> None:
    real = time.time
    time.time = lambda: real() + float(path.read_text())


if __name__ == "__main__":
    _install(Path(sys.argv.pop(1)))
    # Only now: defaults such as `clock=time.time` are taken when a module is imported.
    from batchline.cli.main import main

    main()

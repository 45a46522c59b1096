"""`python -m bench.run`: every measurement, or the named ones, with the floors they must meet."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Final

from bench import (
    api_load,
    cancel,
    control,
    crowd,
    dispatch,
    finalize,
    interactive,
    job_queue,
    limiter,
    listing,
    manifests,
    memory,
    prefix,
    progress,
    rates,
    routing,
    run_command,
    scheduling,
    startup,
    stragglers,
    two_workers,
    upload,
    validation,
)
from bench.processes import Cores
from bench.report import Measurement
from bench.rig import Rig, Size, rig
from tests.support import leash

PARTS: Final = MappingProxyType[str, Callable[[Rig], Measurement]](
    {
        "upload": upload.measure,
        "validation": validation.measure,
        "prefix": prefix.measure,
        "dispatch": dispatch.measure,
        "wide": dispatch.measure_wide,
        "workers": two_workers.measure,
        "control": control.measure,
        "finalize": finalize.measure,
        "cancel": cancel.measure,
        "api": api_load.measure,
        "crowd": crowd.measure,
        "listing": listing.measure,
        "rates": rates.measure,
        "run": run_command.measure,
        "startup": startup.measure,
        "limiter": limiter.measure,
        "interactive": interactive.measure,
        "memory": memory.measure,
        "stragglers": stragglers.measure,
        "progress": progress.measure,
        "scheduling": scheduling.measure,
        "queue": job_queue.measure,
        "ranges": manifests.measure,
        "routing": routing.measure,
    }
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit status is 1 when a floor is missed at full size."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("processes are measured and pinned through what only Linux has")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    size = Size(100.0 if options.size is None else options.size)
    names = [name for name in PARTS if name in (options.parts or PARTS)]
    environment = _environment()
    for key, value in environment.items():
        print(f"{key + ':':<10} {value}")
    measured: dict[str, Measurement] = {}
    leash.tie()  # a server that outlives a killed run takes a core from the next one
    # SIGINT too: a script's shell has its background programs ignore it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's
        signal.signal(signal.SIGHUP, _stop)
    with (
        tempfile.TemporaryDirectory(prefix="batchline-bench-", dir=options.directory) as work,
        rig(Path(work), size, lambda text: print(f"  {text}", flush=True)) as running,
    ):
        leash.remove_at_end(Path(work))
        for name in names:
            print(f"\n## {name}\n", flush=True)
            began = time.perf_counter()
            measured[name] = PARTS[name](running)
            for table in measured[name].tables:
                print(f"\n{table}", flush=True)
            print(f"\n  ({time.perf_counter() - began:.0f} s)", flush=True)
    _write_json(options.json, environment, size, measured)
    return verdict(measured, judged=options.size is None)


def _stop(number: int, _frame: FrameType | None) -> None:
    """End as Ctrl-C does, block by block; the same signal once more ends it where it is."""
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--size",
        type=float,
        metavar="PERCENT",
        help="of the full size, for a look; floors are then shown and not judged",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw results there")
    parser.add_argument(
        "--directory",
        type=Path,
        help="where data goes: a real disk with 10 GB free (default: the system's for such things)",
    )
    return parser


def _environment() -> dict[str, str]:
    model = re.search(
        r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE
    )
    parts = ("batchline", "aiohttp", "uvloop", "msgspec", "openai")
    return {
        "machine": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in parts),
        "cores": str(Cores.of_this_machine()),
        "load": f"{os.getloadavg()[0]:.2f} before the start",
    }


def _write_json(
    path: Path | None, environment: dict[str, str], size: Size, measured: dict[str, Measurement]
) -> None:
    if path is None:
        return
    found = {
        "environment": environment,
        "percent": size.percent,
        "parts": {name: one.raw for name, one in measured.items()},
        "floors": [
            {
                "what": floor.what,
                "value": floor.value,
                "at_most": floor.at_most,
                "at_least": floor.at_least,
                "met": floor.met,
            }
            for one in measured.values()
            for floor in one.floors
        ],
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def verdict(measured: dict[str, Measurement], *, judged: bool) -> int:
    """Show the floors; the exit status."""
    floors = [floor for one in measured.values() for floor in one.floors]
    print("\n## floors" + ("" if judged else " (not judged: this was not the full size)") + "\n")
    for floor in floors:
        print(f"  {floor}")
    return 1 if judged and not all(floor.met for floor in floors) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Memory: whether anonymous memory grows with the number of lines.

Each size has a server of its own, since a peak never goes down. The backend answers at once, so
that 2,000,000 lines take minutes.
"""

from __future__ import annotations

from typing import Final

from bench.processes import SAMPLE_S, MemoryMeter
from bench.report import Floor, Measurement, Row, Table
from bench.rig import Rig

FEW: Final = 20_000
SOME: Final = 200_000  # long enough for what every run reaches, however short: the first is not
MANY: Final = 2_000_000
MOST_BYTES_A_LINE: Final = 2.0
_MIB: Final = 1024 * 1024


def measure(rig: Rig) -> Measurement:
    """Peaks at each size, from before the upload to after the end."""
    sizes = [rig.size.lines(FEW), rig.size.lines(SOME, least=300), rig.size.lines(MANY, least=400)]
    meters = [_peaks(rig, lines) for lines in sizes]
    few, some, many = (meter.peaks for meter in meters)
    slopes = {role: (many[role] - few[role]) / (sizes[2] - sizes[0]) for role in many}
    rows: list[Row] = [
        {
            "process": role,
            "MiB when ready": meters[0].at_start[role] / _MIB,
            **{
                f"peak MiB, {lines:,} lines": meter.peaks[role] / _MIB
                for lines, meter in zip(sizes, meters, strict=True)
            },
            "slope, bytes a line": slopes[role],
            f"slope from {sizes[1]:,} lines": (many[role] - some[role]) / (sizes[2] - sizes[1]),
        }
        for role in many
    ]
    slope = sum(slopes.values())
    return Measurement(
        tables=[Table(f"Anonymous memory, looked at every {SAMPLE_S * 1e3:g} ms", rows)],
        floors=[
            Floor("slope of all processes, bytes a line", slope, at_most=MOST_BYTES_A_LINE),
        ],
        raw={
            "peaks": {str(n): m.peaks for n, m in zip(sizes, meters, strict=True)},
            "slopes": slopes,
        },
    )


def _peaks(rig: Rig, lines: int) -> MemoryMeter:
    path = rig.input(lines)
    rig.backend.reset(0.0)
    with rig.with_fresh_server(f"memory-{lines}") as fresh, MemoryMeter(fresh.server) as meter:
        batch = fresh.create(fresh.uploaded(lines))
        fresh.completed(batch.id, lines, poll_s=0.5 if lines > 20_000 else 0.02)
    rig.say(f"{lines:,} lines: {meter.looks} looks")
    if lines > rig.size.lines(SOME, least=300):
        path.unlink()  # a gigabyte that no other measurement uses
    return meter

"""Durations, sizes and instants as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

from batchline.domain.forecast import TimeLeft


def duration(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 5 min`, `4 d 6 h`: the two largest units."""
    whole = max(0, round(seconds))
    for size, unit, smaller, name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {name}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def size(count: int) -> str:
    """`512 B`, `1.5 MiB`."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def instant(at: int | None) -> str:
    """`2026-11-28 21:57:18Z`; one that no calendar has, as the seconds that it is."""
    try:
        return "-" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (ValueError, OverflowError, OSError):  # any server may have said it
        return f"{at} s after 1970"


def lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count} lines"


def time_left(left: TimeLeft) -> str:
    """`2 min left (1 min 50 s to 2 min 15 s)`: the band holds in four cases of five."""
    least, most = duration(left.least), duration(left.most)
    band = "" if least == most else f" ({least} to {most})"
    return f"{duration(left.likely)} left{band}"


def rate(lines_per_s: float) -> str:
    return f"{lines_per_s:.1f} lines/s" if lines_per_s < 10 else f"{lines_per_s:.0f} lines/s"

"""How many files and sockets a process may have open, and whether that is enough."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batchline.config.settings import Settings

_BESIDE: Final = 64  # shards, segments, looks at backends and the process's own


def raise_file_limit() -> None:
    """As many sockets as the system allows: each request in flight is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS refuses "infinity"
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(10_240, hard), hard))


def too_few_files(settings: Settings) -> str | None:
    """Why a worker may run out of open files, for people; None where it cannot.

    Then connections fail, as if the backend took none, and so do results that are to be written:
    nothing is lost, and nothing goes at the pace that somebody asked for.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    asked = sum(backend.max_in_flight for backend in settings.backends)
    if limit == resource.RLIM_INFINITY or asked + _BESIDE <= limit:
        return None
    return (
        f"a process may have {limit} files open (ulimit -Hn), too few for {asked} requests in"
        " flight (max_in_flight of all backends): raise that or lower this"
    )

"""One server for the cases of a file: each of them has to leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.target import MIB, QUICK_SWEEPS, assert_silent
from tests.support.server import ServerProcess, server

MAX_FILE_BYTES = 400 * MIB
MAX_LINE_BYTES = MIB


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Without a backend: what is refused here never gets to one."""
    limits = {
        "max_file_bytes": MAX_FILE_BYTES,
        "max_batch_file_bytes": MAX_FILE_BYTES,
        "max_line_bytes": MAX_LINE_BYTES,
    }
    settings = {"limits": limits, "retention": QUICK_SWEEPS}
    with server(tmp_path_factory.mktemp("hostile"), "http://127.0.0.1:9", settings=settings) as one:
        yield one
        assert one.terminate() == 0
        assert_silent(one.log.read_text(errors="replace"))

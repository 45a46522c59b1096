"""One server for the cases of a file: each of them has to leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.target import MIB, QUICK_SWEEPS, assert_silent
from tests.support.server import ServerProcess, server

MAX_FILE_BYTES = 400 * MIB  # unless the file of the cases says otherwise by the same name
MAX_LINE_BYTES = MIB


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Without a backend: what is refused here never gets to one."""
    max_file_bytes = getattr(request.module, "MAX_FILE_BYTES", MAX_FILE_BYTES)
    limits = {
        "max_file_bytes": max_file_bytes,
        "max_batch_file_bytes": max_file_bytes,
        "max_line_bytes": MAX_LINE_BYTES,
    }
    settings = {"limits": limits, "retention": QUICK_SWEEPS}
    with server(tmp_path_factory.mktemp("hostile"), "http://127.0.0.1:9", settings=settings) as one:
        yield one
        assert one.terminate() == 0
        assert_silent(one.log.read_text(errors="replace"))

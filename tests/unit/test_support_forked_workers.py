"""Children that are forked for an executor or a job queue in the process of the tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from batchline import telemetry
from batchline.service.jobs import JobFailed, Jobs
from tests.support.forked_workers import executed_workers, forked_workers

__all__ = ["executed_workers", "forked_workers"]  # fixtures

pytestmark = [
    pytest.mark.usefixtures("forked_workers"),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are executed"),
]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(folder: Path) -> list[int]:
    return [int(record.name) for record in folder.iterdir() if record.name.isdigit()]


async def test_a_job_runs_in_a_process_that_was_forked_and_is_gone_with_its_queue(
    tmp_path: Path,
) -> None:
    jobs = Jobs(tmp_path)
    await jobs.run(telemetry.probe, "nobody looks")
    (child,) = children_of(tmp_path)
    assert child != os.getpid()
    assert parent_of(child) != os.getpid()
    await jobs.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


async def test_a_child_that_ends_in_its_job_is_seen_to_be_dead(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    telemetry.arm("here=kill")
    try:
        with pytest.raises(JobFailed):
            await jobs.run(telemetry.probe, "here")
    finally:
        telemetry.arm("")
    await jobs.close()
    assert children_of(tmp_path) == []


@pytest.mark.usefixtures("executed_workers")
async def test_a_test_may_have_its_own_children(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    await jobs.run(telemetry.probe, "nobody looks")
    (child,) = children_of(tmp_path)
    assert parent_of(child) == os.getpid()
    await jobs.close()

"""A full disk: a real small file system under the data directory, filled by a batch's answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from tests.support.inputs import make_lines
from tests.support.pauses import pause
from tests.support.scripted_backend import Answer, Fault, Script, backend_process
from tests.support.server import WAIT_S, conserved, server, submit, wait_for
from tests.support.small_disk import fill, mounted_disk, occupy, used_bytes

MIB: Final = 1024 * 1024
DISK_MIB: Final = 32
BALLAST_MIB: Final = 12
LINES: Final = 150
BIG: Final = Answer(fault=Fault.HUGE, text_bytes=100_000, latency_s=0.2)  # 15 MB in all


def settings(base_url: str, *, low_mib: int, high_mib: int) -> dict[str, Any]:
    """Few requests at once, so that what is in flight at a pause is little beside the marks."""
    return {
        "disk": {
            "low_water_bytes": low_mib * MIB,
            "high_water_bytes": high_mib * MIB,
            "reserve_bytes": 2 * MIB,
        },
        "cancel": {"grace_s": 0.0},
        "backend": [{"base_url": base_url, "max_in_flight": 16}],
    }


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The server's data directory, a file system of its own with ballast on it."""
    with mounted_disk(tmp_path / "data", mib=DISK_MIB) as data:
        occupy(data / "ballast", mib=BALLAST_MIB)
        yield data


def wait_committed(client: openai.OpenAI, batch_id: str, lines: int) -> None:
    """Until the counts say that so many lines are settled: their bytes are on the disk then."""
    began = time.monotonic()
    while (counts := client.batches.retrieve(batch_id).request_counts) is not None:
        if counts.completed >= lines:
            return
        assert time.monotonic() < began + WAIT_S, f"{lines} answered, {counts}"
        pause(began)


async def test_dispatch_pauses_before_the_disk_is_full_and_goes_on_when_there_is_room(
    tmp_path: Path, disk: Path
) -> None:
    content = make_lines(LINES)
    async with backend_process(Script(answer=BIG)) as backend:
        marks = settings(backend.base_url, low_mib=10, high_mib=14)
        with server(tmp_path, settings=marks) as running:
            client = running.client()
            batch = submit(client, content)
            body = running.wait_readiness(lambda body: body["disk"]["state"] == "disk_low")
            assert body["status"] == "ready"  # the API works; its batches wait
            await backend.wait_until(in_flight=0)
            sent = (await backend.stats()).arrivals
            assert sent < LINES
            assert running.readiness()["disk"]["free_bytes"] > 2 * MIB
            assert (disk / "reserve").stat().st_size == 2 * MIB
            assert (await backend.stats()).arrivals == sent

            (disk / "ballast").unlink()
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            summary = conserved(client, ended, content, await backend.log())
            assert (summary.finished, summary.resent) == (LINES, 0)
            assert running.readiness()["disk"]["state"] == "ok"


async def test_control_writes_succeed_on_a_full_disk_and_uploads_are_refused(
    tmp_path: Path, disk: Path
) -> None:
    content, other = make_lines(LINES), make_lines(500, start=10_000)
    async with backend_process(Script(answer=BIG)) as backend:
        marks = settings(backend.base_url, low_mib=10, high_mib=14)
        with server(tmp_path, settings=marks) as running:
            client = running.client(retries=2)
            other_file = client.files.create(file=("other.jsonl", other), purpose="batch")
            batch = submit(client, content)
            running.wait_readiness(lambda body: body["disk"]["state"] == "disk_low")
            wait_committed(client, batch.id, (await backend.wait_until(in_flight=0)).answered)

            # An upload that does not fit leaves nothing, and its client does not try it again.
            files_before = len(client.files.list().data)
            taken_before = used_bytes(disk)
            with pytest.raises(openai.APIStatusError) as refused:
                client.files.create(file=("big.jsonl", make_lines(1) * 80_000), purpose="batch")
            assert refused.value.status_code == 507
            assert refused.value.response.headers["x-should-retry"] == "false"
            assert len(client.files.list().data) == files_before
            assert used_bytes(disk) - taken_before < MIB
            assert list((disk / "blobs" / "scratch").iterdir()) == []

            # Not a byte is left: what a caller is promised is still written.
            fill(disk / "filling")
            created = [
                client.batches.create(
                    input_file_id=other_file.id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                    metadata={"why": "x" * 500},
                )
                for _ in range(3)
            ]
            assert client.batches.cancel(batch.id).status == "cancelling"
            for one in created:
                assert client.batches.cancel(one.id).status == "cancelling"

            (disk / "filling").unlink()
            (disk / "ballast").unlink()
            log = await backend.log()
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            summary = conserved(client, ended, content, log)
            assert summary.finished == len(log.arrivals)
            for one in created:
                ended = wait_for(client, one.id)
                assert ended.status == "cancelled"
                assert conserved(client, ended, other).finished == 0


async def test_a_segment_that_meets_the_full_disk_waits_and_loses_nothing(
    tmp_path: Path, disk: Path
) -> None:
    content = make_lines(LINES)
    # The marks are so low that the answers in flight alone go past them.
    async with backend_process(Script(answer=BIG)) as backend:
        marks = settings(backend.base_url, low_mib=1, high_mib=2)
        with server(tmp_path, settings=marks) as running:
            client = running.client()
            batch = submit(client, content)
            await backend.wait_for_arrivals(20)
            fill(disk / "filling")
            running.wait_readiness(lambda body: body["disk"]["state"] != "ok")
            running.wait_readiness(lambda _: "disk_full" in running.tail())
            await backend.wait_until(in_flight=0)
            assert client.batches.retrieve(batch.id).status == "in_progress"

            (disk / "filling").unlink()
            (disk / "ballast").unlink()
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            summary = conserved(client, ended, content, await backend.log())
            assert (summary.finished, summary.resent) == (LINES, 0)

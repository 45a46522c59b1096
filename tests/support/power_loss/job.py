"""What is recorded: a client that uploads, runs, cancels and deletes, against a real server.

It asks one thing after the other, so that the order of the answers says what it knew when.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import openai
from openai.types import Batch

from tests.support.inputs import make_lines
from tests.support.pauses import pause
from tests.support.power_loss.recording import Recording, under_strace, wait_recorded
from tests.support.power_loss.told import Answer, answers, every_file, told
from tests.support.scripted_backend import Answer as Scripted
from tests.support.scripted_backend import Script
from tests.support.server import ServerProcess, content_of, server, wait_for

# Two models: a plan is then grouped, which writes it a second time.
SCRIPT: Final = Script(
    models=("test-model", "other-model"),
    answer=Scripted(latency_s=0.005, latency_max_s=0.03),
)
LINES: Final = 150

# The input of the batch with `invalid_lines: "skip"`: good lines and one that is none.
SKIPPING: Final = "skipping.jsonl"
GOOD: Final = make_lines(40, start=3_000)

# Each batch in a segment of its own, or in more, by several commits, in half a second.
SETTINGS: Final[dict[str, Any]] = {
    "allow_mixed_models": True,
    "cancel": {"grace_s": 0.05},
    "disk": {"reserve_bytes": 4096},
    "retry": {"base_s": 0.01, "ceiling_s": 0.05},
    "worker": {"commit_interval_s": 0.03, "segment_idle_s": 0.05},
}


@dataclass(slots=True)
class Recorded:
    """`inputs` by the name under which a file was uploaded, `outputs` by the id of the file.

    `names` has the name of every file, and `deleted` the ids of those that went at some time.
    """

    recording: Recording
    answers: list[Answer]
    inputs: dict[str, bytes]
    outputs: dict[str, bytes]
    names: dict[str, str]
    deleted: set[str]

    def content_of(self, file_id: str) -> bytes | None:
        """What is in a file, where the client has sent or read it."""
        return self.outputs.get(file_id) or self.inputs.get(self.names[file_id])


def settings(base_url: str) -> dict[str, Any]:
    return {**SETTINGS, "backend": [{"base_url": base_url, "max_in_flight": 16}]}


def record(directory: Path, base_url: str, *, restarts: bool) -> Recorded:
    """Run everything once under strace, on a data directory that is not there yet.

    It ends in the middle of a batch, with SIGTERM. `restarts`: a second server then goes on and is
    killed, and a third one comes to the end.
    """
    disk = directory / "disk"
    disk.mkdir()
    traces: list[Path] = []
    with server(disk, settings=settings(base_url), start=False) as running:
        job = _Job(running)
        parts: list[tuple[Callable[[], None], Callable[[], object]]] = [
            (job.everything, running.terminate)
        ]
        if restarts:
            parts += [(job.going_on, running.kill_all), (job.coming_to_the_end, running.terminate)]
        for part, end in parts:
            traces.append(directory / f"trace-{len(traces)}")
            running.under = under_strace(traces[-1])
            running.start()
            part()
            end()
            wait_recorded(traces[-1])
    recording = Recording.of(traces, disk, ignored=frozenset({"server.log", "batchline.toml"}))
    given = answers(recording.sent)
    return Recorded(
        recording,
        given,
        job.inputs,
        job.outputs,
        names={key: body["filename"] for key, body in every_file(given).items()},
        deleted=told(given, recording.end).deleted,
    )


class _Job:
    """The client, and what it sent and got."""

    def __init__(self, running: ServerProcess) -> None:
        self._running = running
        self._client: openai.OpenAI
        self._unfinished = ""
        self.inputs: dict[str, bytes] = {}
        self.outputs: dict[str, bytes] = {}

    def everything(self) -> None:
        self._client = self._running.client()
        failing = make_lines(LINES, markers=lambda number: "[[status=422]]" * (number % 5 == 0))
        first = self._upload("plain.jsonl", failing)
        self._to_its_end(self._create(first))

        mixed = make_lines(LINES, start=1_000) + make_lines(
            LINES, start=2_000, model="other-model", markers=lambda _: "[[delay=0.05]]"
        )
        batch = self._create(self._upload_in_parts("parts.jsonl", mixed))
        self._wait_counted(batch, 20)
        assert self._client.batches.cancel(batch.id).status == "cancelling"
        self._to_its_end(batch)
        self._client.files.delete(first)

        third = self._create(self._upload(SKIPPING, GOOD + b"no JSON\n"), invalid_lines="skip")
        self._client.files.delete(self._to_its_end(third).output_file_id or "")

        fourth = self._create(self._upload("last.jsonl", make_lines(LINES, start=5_000)))
        self._wait_counted(fourth, 20)
        self._unfinished = fourth.id

    def going_on(self) -> None:
        self._client = self._running.client()
        self._to_its_end(self._client.batches.retrieve(self._unfinished))
        batch = self._create(self._upload("more.jsonl", make_lines(LINES, start=6_000)))
        self._wait_counted(batch, 20)
        self._unfinished = batch.id

    def coming_to_the_end(self) -> None:
        self._client = self._running.client()
        self._to_its_end(self._client.batches.retrieve(self._unfinished))

    # -- steps -----------------------------------------------------------------------------

    def _upload(self, name: str, content: bytes) -> str:
        self.inputs[name] = content
        return self._client.files.create(file=(name, content), purpose="batch").id

    def _upload_in_parts(self, name: str, content: bytes) -> str:
        self.inputs[name] = content
        upload = self._client.uploads.upload_file_chunked(
            file=content,
            filename=name,
            bytes=len(content),
            mime_type="application/jsonl",
            purpose="batch",
            part_size=len(content) // 3 + 1,
        )
        assert upload.file is not None
        return upload.file.id

    def _create(self, file_id: str, **extra: str) -> Batch:
        return self._client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_body=extra,
        )

    def _wait_counted(self, batch: Batch, lines: int) -> None:
        began = time.monotonic()
        while True:
            counts = self._client.batches.retrieve(batch.id).request_counts
            if counts is not None and counts.completed >= lines:
                return
            assert time.monotonic() < began + 20, counts
            pause(began)

    def _to_its_end(self, batch: Batch) -> Batch:
        ended = wait_for(self._client, batch.id)
        for file_id in (ended.output_file_id, ended.error_file_id):
            content = content_of(self._client, file_id)
            if file_id is not None and content is not None:
                self.outputs[file_id] = content
        return ended

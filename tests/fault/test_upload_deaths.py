"""kill -9 at each step of an upload in parts: nothing is stuck, and no byte is left over."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.support.server import ServerProcess, server

PARTS = [b"one ", b"two ", b"three"]
CONTENT = b"".join(PARTS)
SETTINGS = {"retention": {"sweep_s": 0.05}}

# The blobs of a run are the three parts and then the copy.
STEPS = [
    "upload.create.before=kill",
    "upload.create.inside=kill",
    "upload.create.after=kill",
    "blob.written=kill@2",
    "blob.renamed=kill@2",
    "blob.durable=kill@2",
    "part.add.before=kill@2",
    "part.add.inside=kill@2",
    "part.add.after=kill@2",
    "blob.written=kill@4",
    "blob.synced=kill@4",
    "blob.renamed=kill@4",
    "blob.durable=kill@4",
    "upload.complete.before=kill",
    "upload.complete.inside=kill",
    "upload.complete.after=kill",
    "upload.cancel.before=kill",
    "upload.cancel.inside=kill",
    "upload.cancel.after=kill",
]


class Uploader:
    """A client that goes on where its server died, as any client could: it repeats the call."""

    def __init__(self, running: ServerProcess) -> None:
        self.running = running
        self.died = False
        self.upload_id = ""
        self.part_ids: list[str] = []

    def step(self, name: str, index: int = 0) -> None:
        try:
            self._call(name, index)
        except openai.APIConnectionError:
            assert not self.died, "a server that died once died again"
            self.died = True
            self.running.wait_ended()
            self.running.start()
            self._call(name, index)

    def _call(self, name: str, index: int) -> None:
        uploads = self.running.client().uploads
        match name:
            case "create":
                upload = uploads.create(
                    bytes=len(CONTENT), filename="a.txt", mime_type="", purpose="user_data"
                )
                self.upload_id = upload.id
            case "part":
                part = uploads.parts.create(self.upload_id, data=PARTS[index])
                self.part_ids.append(part.id)
            case "complete":
                done = uploads.complete(self.upload_id, part_ids=self.part_ids)
                assert done.file is not None
                assert done.file.bytes == len(CONTENT)
            case _:
                assert uploads.cancel(self.upload_id).status == "cancelled"


@pytest.mark.parametrize("probe", STEPS)
def test_a_death_at_a_step_of_an_upload_leaves_nothing_stuck_and_no_byte_over(
    tmp_path: Path, probe: str
) -> None:
    end = "cancel" if probe.startswith("upload.cancel") else "complete"
    with server(tmp_path, "http://127.0.0.1:1", settings=SETTINGS, probes=probe) as running:
        uploader = Uploader(running)
        uploader.step("create")
        for index in range(len(PARTS)):
            uploader.step("part", index)
        uploader.step(end)
        assert uploader.died, f"{probe} was never reached"
        client = running.client()
        files = client.files.list().data
        assert [file.bytes for file in files] == ([len(CONTENT)] if end == "complete" else [])
        running.wait_blobs([len(CONTENT)] if end == "complete" else [])

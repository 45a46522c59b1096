"""The jobs that `test_kill.py` plays while somebody dies: each goes on as any client could.

A scene says what a client does, waits for the death that its step arms, and checks how it all
ended. What every scene ends in is `Mortal.settle`: rows and bytes agree, nothing is held by what
has ended, and the server that is there now runs a batch.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import openai
import pytest
from openai.types import Batch

from tests.fault.steps import Scene, Step, Victim
from tests.support.conserved import Conserved
from tests.support.inputs import make_lines
from tests.support.pauses import pause
from tests.support.scripted_backend import Answer, BackendControl, Script, backend_process
from tests.support.server import (
    TERMINAL,
    ServerProcess,
    conserved,
    content_of,
    server,
    submit,
    wait_for,
)
from tests.support.stored import let_expire, settled_lines, wait_until_rows_and_bytes_agree

T = TypeVar("T")

LINES: Final = 400
FEW: Final = 100
MAX_IN_FLIGHT: Final = 64
SLOW: Final = Script(answer=Answer(latency_s=0.05))
HOLD: Final = Script(answer=Answer(hold=True))
DEATH_S: Final = 30.0
BAD_LINE: Final = b'{"custom_id":"bad"}\n'


class Mortal:
    """A server of which somebody dies once, and a client that goes on where that happened."""

    def __init__(self, running: ServerProcess, backend: BackendControl, step: Step, victim: Victim):
        self.running = running
        self.backend = backend
        self.step = step
        self.victim = victim
        self.died = False
        self.committed = 0  # lines, when the server died
        self._key = "any"
        self._client: openai.OpenAI | None = None

    # -- the client --------------------------------------------------------------------------

    @property
    def client(self) -> openai.OpenAI:
        """A client of the server that is there now."""
        if self._client is None:
            self._client = self.running.client(key=self._key)
        return self._client

    def use_key(self, key: str) -> None:
        """What clients have to say from now on."""
        self._key, self._client = key, None

    def ask(
        self,
        call: Callable[[openai.OpenAI], T],
        *,
        lost: Callable[[openai.OpenAI], T | None] | None = None,
        named: str = "",
    ) -> T:
        """The answer to `call`. When the server dies meanwhile: start it again and repeat the call,
        unless it has happened already, which is what `lost` finds out (None: it has not). Of a
        death at a step of `named`, the call's own, the table says whether it has."""
        try:
            return call(self.client)
        except openai.APIConnectionError:
            self.bury()
        found = None if lost is None else lost(self.client)
        if named and self.step.probe.startswith(f"{named}."):
            assert (found is not None) == self.step.done
        return call(self.client) if found is None else found

    def ended(self, batch_id: str) -> Batch:
        """Poll until the batch is terminal."""
        began = time.monotonic()
        while True:
            batch = self.ask(lambda client: client.batches.retrieve(batch_id))
            if batch.status in TERMINAL:
                return batch
            assert time.monotonic() < began + 30, f"{batch_id} is {batch.status}: {batch}"
            pause(began)

    def conserved(self, batch_id: str, content: bytes) -> tuple[Batch, Conserved]:
        """How the batch ended, once nobody will die any more; `assert_conserved` of it."""
        self.ended(batch_id)
        self.await_death()
        ended = self.ended(batch_id)
        return ended, conserved(self.client, ended, content)

    # -- the death ---------------------------------------------------------------------------

    def bury(self) -> None:
        """The server has died, or is about to: see its end and start it again, unarmed."""
        assert self.victim is not Victim.WORKERS, "the server died of a death of its workers"
        assert not self.died, "a server that died once died again"
        assert self.running.wait_ended(DEATH_S) == -signal.SIGKILL
        self.died = True
        self.committed = settled_lines(self.running.data)
        self._client = None
        self.running.start()

    def await_death(self) -> None:
        """Returns when whom the step ends has ended, and is there again; it must be reached."""
        if self.died:
            return
        if self.victim is not Victim.WORKERS:
            self.bury()
            return
        began = time.monotonic()
        while "worker_ended" not in self.running.log.read_text(errors="replace"):
            assert time.monotonic() < began + DEATH_S, f"{self.step} was never reached"
            pause(began)
        self.died = True

    async def settle(self) -> None:
        """Nothing is left over, and the server works."""
        self.await_death()
        if self.victim is Victim.WORKERS:
            # A segment of which nothing was committed is an orphan, and those go at the next start.
            assert self.running.terminate() == 0
            self._client = None
            self.running.start()
        await self.backend.set_script(Script())
        one = make_lines(1, start=9_000_000)
        file = self.client.files.create(
            file=("last.jsonl", one),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3_600},  # in every scene
        )
        last = self.client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )
        assert conserved(self.client, wait_for(self.client, last.id), one).finished == 1
        wait_until_rows_and_bytes_agree(self.running.data)
        assert self.running.readiness()["status"] == "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One scene. `starts`: it starts the server itself, after what comes before its step."""

    act: Callable[[Mortal], Awaitable[None]]
    script: Script = SLOW
    settings: Mapping[str, object] = field(default_factory=dict)
    starts: bool = False


# -- batches -----------------------------------------------------------------------------------


def _uploaded(mortal: Mortal, content: bytes) -> str:
    """The id of a file with this content. An upload whose answer was lost is sent again."""

    def upload(client: openai.OpenAI) -> str:
        return client.files.create(file=("in.jsonl", content), purpose="batch").id

    return mortal.ask(upload)


def _created(mortal: Mortal, file_id: str, *, window: str = "24h", skip: bool = False) -> str:
    """The id of the one batch on the file: looked for, where the create's answer was lost."""

    def create(client: openai.OpenAI) -> str:
        return client.batches.create(
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window=window,  # type: ignore[arg-type]  # short windows, by a setting
            extra_body={"invalid_lines": "skip"} if skip else {},
        ).id

    def look(client: openai.OpenAI) -> str | None:
        return next((batch.id for batch in client.batches.list()), None)

    batch_id = mortal.ask(create, lost=look, named="batch.create")
    assert [one.id for one in mortal.ask(lambda c: c.batches.list().data)] == [batch_id]
    return batch_id


async def _batch(mortal: Mortal) -> None:
    content = make_lines(LINES)
    batch_id = _created(mortal, _uploaded(mortal, content))
    ended, summary = mortal.conserved(batch_id, content)
    assert ended.status == "completed"
    assert summary.finished == LINES
    # What had been committed when the server died is not sent again, whatever else was under way.
    assert (await mortal.backend.log()).resent() <= LINES - mortal.committed


async def _refuse(mortal: Mortal) -> None:
    batch_id = _created(mortal, _uploaded(mortal, BAD_LINE))
    ended, _ = mortal.conserved(batch_id, BAD_LINE)
    assert ended.status == "failed"
    assert ended.errors is not None
    assert [problem.line for problem in ended.errors.data or ()] == [1]


async def _skip(mortal: Mortal) -> None:
    good = make_lines(FEW)
    batch_id = _created(mortal, _uploaded(mortal, BAD_LINE + good + BAD_LINE), skip=True)
    mortal.ended(batch_id)
    mortal.await_death()
    ended = mortal.ended(batch_id)
    assert ended.status == "completed"
    counts = ended.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (FEW + 2, FEW, 2)
    output = _lines_of(mortal, ended.output_file_id)
    assert {line["custom_id"] for line in output} == {
        json.loads(line)["custom_id"] for line in good.splitlines()
    }
    errors = _lines_of(mortal, ended.error_file_id)
    assert [line["error"]["line"] for line in errors] == [1, FEW + 2]
    assert len({line["id"] for line in (*output, *errors)}) == FEW + 2


def _lines_of(mortal: Mortal, file_id: str | None) -> list[dict[str, dict[str, object]]]:
    content = content_of(mortal.client, file_id) or b""
    return [json.loads(line) for line in content.splitlines()]


async def _loss(mortal: Mortal) -> None:
    content = make_lines(LINES)
    batch = submit(mortal.client, content)
    await mortal.backend.wait_for_arrivals(FEW)
    assert mortal.running.signal_workers(signal.SIGKILL) == 1
    ended, summary = mortal.conserved(batch.id, content)
    assert ended.status == "completed"
    assert summary.finished == LINES
    assert (await mortal.backend.log()).resent() <= 2 * LINES - mortal.committed


# -- batches that are stopped ------------------------------------------------------------------


async def _cancel(mortal: Mortal) -> None:
    content = make_lines(LINES)
    batch = submit(mortal.client, content)
    await mortal.backend.wait_for_arrivals(FEW)
    accepted = await _cancelled(mortal, batch.id)
    at = await mortal.backend.caught_up()
    ended, _ = mortal.conserved(batch.id, content)
    assert ended.status == ("cancelled" if accepted else "completed")
    if accepted:
        assert (await mortal.backend.log()).arrived_after(at) == []


async def _cancelled(mortal: Mortal, batch_id: str) -> bool:
    """Ask once; whether the cancel counts. It is not asked again when its answer is lost."""
    try:
        mortal.client.batches.cancel(batch_id)
    except openai.APIConnectionError:
        mortal.bury()
        # At any later step than its own the cancel has been committed.
        return mortal.step.done or not mortal.step.probe.startswith("cancel.")
    return True


async def _fence(mortal: Mortal) -> None:
    """The workers acknowledge and then hang: two seconds past the grace they are killed."""
    content = make_lines(FEW)
    batch = submit(mortal.client, content)
    await mortal.backend.wait_until(min_held=MAX_IN_FLIGHT)
    mortal.client.batches.cancel(batch.id)
    mortal.running.signal_workers(signal.SIGSTOP)
    ended, summary = mortal.conserved(batch.id, content)
    assert (ended.status, summary.cancelled) == ("cancelled", FEW)


async def _expire(mortal: Mortal) -> None:
    content = make_lines(FEW)
    batch = submit(mortal.client, content, window=WINDOW)
    await mortal.backend.wait_until(min_held=MAX_IN_FLIGHT)
    ended, summary = mortal.conserved(batch.id, content)
    assert (ended.status, summary.expired) == ("expired", FEW)


async def _lost(mortal: Mortal) -> None:
    content = make_lines(600)  # more than a worker has read when as many as may be are in flight
    file_id = _uploaded(mortal, content)
    batch_id = _created(mortal, file_id)
    await mortal.backend.wait_until(min_held=MAX_IN_FLIGHT)
    # Deleted, so that nobody but the batch needs the bytes that are about to be missed.
    mortal.client.files.delete(file_id)
    for blob in (mortal.running.data / "blobs" / "input").iterdir():
        os.truncate(blob, 0)
    await mortal.backend.stop_holding()
    mortal.ended(batch_id)
    mortal.await_death()
    ended = mortal.ended(batch_id)
    assert ended.status == "failed"
    assert ended.errors is not None
    assert [problem.code for problem in ended.errors.data or ()] == ["input_unreadable"]
    counts = ended.request_counts
    assert counts is not None
    output = _lines_of(mortal, ended.output_file_id)
    assert len({str(line["custom_id"]) for line in output}) == len(output) == counts.completed


# -- bytes that go -----------------------------------------------------------------------------


async def _delete(mortal: Mortal) -> None:
    file_id = _uploaded(mortal, make_lines(FEW))
    ended = mortal.ended(_created(mortal, file_id))
    for one in (file_id, ended.output_file_id):
        assert one is not None
        mortal.ask(partial(_delete_file, one), lost=partial(_is_gone, one), named="file.delete")
    mortal.await_death()
    assert mortal.client.files.list().data == []
    mortal.running.wait_blobs([])


def _delete_file(file_id: str, client: openai.OpenAI) -> bool:
    return client.files.delete(file_id).deleted


def _is_gone(file_id: str, client: openai.OpenAI) -> bool | None:
    try:
        client.files.retrieve(file_id)
    except openai.NotFoundError:
        return True
    return None


async def _retention(mortal: Mortal) -> None:
    running = mortal.running
    running.start()
    uploads = running.client().uploads
    running.client().files.create(file=("in.jsonl", make_lines(1)), purpose="batch")
    upload = uploads.create(bytes=9, filename="a.txt", mime_type="", purpose="user_data")
    uploads.parts.create(upload.id, data=b"one")
    running.kill_all()
    let_expire(running.data)
    running.start(probes=mortal.step.armed(mortal.victim), wait=False)
    mortal.await_death()
    assert mortal.client.files.list().data == []
    running.wait_blobs([])


# -- uploads in parts --------------------------------------------------------------------------

PARTS: Final = (b"one ", b"two ", b"three")
WHOLE: Final = b"".join(PARTS)


def _with_parts(mortal: Mortal) -> tuple[str, list[str]]:
    """An upload and its parts; a call whose answer was lost is sent again."""
    upload_id = mortal.ask(
        lambda client: (
            client.uploads.create(
                bytes=len(WHOLE), filename="a.txt", mime_type="", purpose="user_data"
            ).id
        )
    )
    return upload_id, [mortal.ask(partial(_part, upload_id, part)) for part in PARTS]


def _part(upload_id: str, part: bytes, client: openai.OpenAI) -> str:
    return client.uploads.parts.create(upload_id, data=part).id


async def _parts(mortal: Mortal) -> None:
    upload_id, part_ids = _with_parts(mortal)
    upload = mortal.ask(lambda client: client.uploads.complete(upload_id, part_ids=part_ids))
    assert upload.file is not None
    assert upload.file.bytes == len(WHOLE)
    mortal.await_death()
    assert [file.bytes for file in mortal.client.files.list()] == [len(WHOLE)]
    mortal.running.wait_blobs([len(WHOLE)])


async def _parts_cancel(mortal: Mortal) -> None:
    upload_id, _ = _with_parts(mortal)
    assert mortal.ask(lambda client: client.uploads.cancel(upload_id)).status == "cancelled"
    mortal.await_death()
    assert mortal.client.files.list().data == []
    mortal.running.wait_blobs([])


# -- keys --------------------------------------------------------------------------------------


async def _keys(mortal: Mortal) -> None:
    running = mortal.running
    known: set[str] = set()
    made = running.command("keys", "create", "--project", "one")
    if mortal.step.probe.startswith("key.create"):
        assert made.returncode != 0
        mortal.bury()
        known = set(_key_ids(running))
        assert len(known) == (1 if mortal.step.done else 0)
        made = running.command("keys", "create", "--project", "one")
    assert made.returncode == 0, made.stderr
    key, (key_id,) = made.stdout.splitlines()[-1], set(_key_ids(running)) - known
    assert running.client(key=key).files.list().data == []
    revoked = running.command("keys", "revoke", key_id)
    if mortal.step.probe.startswith("key.revoke"):
        assert revoked.returncode != 0
        mortal.bury()
        if not mortal.step.done:
            assert running.client(key=key).files.list().data == []
            assert running.command("keys", "revoke", key_id).returncode == 0
    with pytest.raises(openai.AuthenticationError):
        running.client(key=key).files.list()
    mortal.use_key(running.new_key("two"))


def _key_ids(running: ServerProcess) -> list[str]:
    listed = running.command("keys", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    return [json.loads(line)["id"] for line in listed.stdout.splitlines()]


# -- starts ------------------------------------------------------------------------------------


async def _first(mortal: Mortal) -> None:
    mortal.running.start(probes=mortal.step.armed(mortal.victim), wait=False)
    mortal.await_death()


async def _again(mortal: Mortal) -> None:
    """The server alone dies; its workers cannot notice, and bytes without a row are about."""
    running = mortal.running
    running.start()
    content = make_lines(FEW)
    batch = submit(running.client(), content)
    await mortal.backend.wait_until(min_held=MAX_IN_FLIGHT)
    running.signal_workers(signal.SIGSTOP)
    running.kill()
    for place in ("input/input-" + secrets.token_hex(16), "scratch/" + secrets.token_hex(16)):
        (running.data / "blobs" / place).write_bytes(b"orphan")
    running.start(probes=mortal.step.armed(mortal.victim), wait=False)
    mortal.await_death()
    await mortal.backend.stop_holding()
    ended, summary = mortal.conserved(batch.id, content)
    assert (ended.status, summary.finished) == ("completed", FEW)


async def _again_cancel(mortal: Mortal) -> None:
    """The never-run lines are in scratch when the server dies first, with everybody else."""
    running = mortal.running
    running.start(probes="never_run.written=kill_family")
    content = make_lines(FEW)
    batch = submit(running.client(), content)
    await mortal.backend.wait_until(min_held=MAX_IN_FLIGHT)
    running.client().batches.cancel(batch.id)
    assert running.wait_ended() == -signal.SIGKILL
    at = await mortal.backend.caught_up()
    running.start(probes=mortal.step.armed(mortal.victim), wait=False)
    mortal.await_death()
    ended, summary = mortal.conserved(batch.id, content)
    assert (ended.status, summary.cancelled) == ("cancelled", FEW)
    assert (await mortal.backend.log()).arrived_after(at) == []


async def _again_expire(mortal: Mortal) -> None:
    running = mortal.running
    running.start()
    content = make_lines(FEW)
    batch = submit(running.client(), content)
    await mortal.backend.wait_until(min_held=MAX_IN_FLIGHT)
    running.kill_all()
    at = await mortal.backend.caught_up()
    let_expire(running.data)
    running.start(probes=mortal.step.armed(mortal.victim), wait=False)
    mortal.await_death()
    ended, summary = mortal.conserved(batch.id, content)
    assert (ended.status, summary.expired) == ("expired", FEW)
    assert (await mortal.backend.log()).arrived_after(at) == []


# -- all of them -------------------------------------------------------------------------------

# Long enough for the batch to be under way before it ends, on a busy machine too.
WINDOW: Final = "6s"
_AT_ONCE: Final = {"expire": {"grace_s": 0.0}}

PLAYS: Final[Mapping[Scene, Play]] = {
    Scene.BATCH: Play(act=_batch),
    Scene.REFUSE: Play(act=_refuse),
    Scene.SKIP: Play(act=_skip),
    Scene.CANCEL: Play(act=_cancel, settings={"cancel": {"grace_s": 0.05}}),
    Scene.FENCE: Play(act=_fence, script=HOLD, settings={"cancel": {"grace_s": 0.5}}),
    Scene.LOSS: Play(act=_loss),
    Scene.EXPIRE: Play(act=_expire, script=HOLD, settings={"windows": ["24h", WINDOW], **_AT_ONCE}),
    Scene.LOST: Play(act=_lost, script=HOLD),
    Scene.DELETE: Play(act=_delete, settings={"worker": {"segment_idle_s": 0.2}}),
    Scene.RETENTION: Play(act=_retention, starts=True),
    Scene.PARTS: Play(act=_parts),
    Scene.PARTS_CANCEL: Play(act=_parts_cancel),
    Scene.KEYS: Play(act=_keys),
    Scene.FIRST: Play(act=_first, starts=True),
    Scene.AGAIN: Play(act=_again, script=HOLD, starts=True),
    Scene.AGAIN_CANCEL: Play(
        act=_again_cancel, script=HOLD, settings={"cancel": {"grace_s": 0.0}}, starts=True
    ),
    Scene.AGAIN_EXPIRE: Play(act=_again_expire, script=HOLD, settings=_AT_ONCE, starts=True),
}


async def play(directory: Path, step: Step, victim: Victim) -> None:
    """Play the step's scene in `directory` and end `victim` at the step."""
    scene = PLAYS[step.scene]
    settings = {"retention": {"sweep_s": 0.05}, **scene.settings}
    async with backend_process(scene.script) as backend:
        with server(directory, backend.base_url, settings=settings, start=False) as running:
            mortal = Mortal(running, backend, step, victim)
            if not scene.starts:
                running.start(probes=step.armed(victim))
            await scene.act(mortal)
            await mortal.settle()

"""Random histories of batches, and after each step the server compared with the reference.

A step is what a client does, what a backend or a worker does, time that passes, or a crash. A step
whose effects are several commits (a group of shards that comes back) can be cut off between any two
of them: what is there after the crash has to be what one of the beginnings of that step leaves.
"""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from batchline.domain.ids import BatchId
from tests.contract.api.serving import FORM, form, part
from tests.model.executor import HeldShard, Worker
from tests.model.reference import ENDS, Batch, Held, Reference
from tests.model.world import NOW, WINDOWS, Hold, Reply, Template, WaitingJob, World
from tests.support.conserved import assert_conserved
from tests.support.inputs import line_id, make_lines
from tests.support.stored import disagreements

MOST_BATCHES: Final = 12
MOST_LINES: Final = 7
MOST_CALLS: Final = 12  # of the store, until an announced crash
MOVES: Final = ("move", "start_batch", "finalize")  # calls of the runner that are held up

# Power loss is not what is tested here, and every commit waits for the disk.
MEMORY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108

Effect = Callable[[Reference], object]

_some: Final = st.integers(0, 255)  # chooses one of those that there are
_answers: Final = st.lists(st.booleans(), min_size=1, max_size=2)
_mostly: Final = st.sampled_from([True, True, False])
_hold: Final = st.none() | st.tuples(st.sampled_from(MOVES), st.booleans())
_key: Final = st.sampled_from([None, None, "one", "two"])


@dataclass
class Seen:
    """What the server said of a batch before; `files` once it had ended."""

    id: str
    source: int  # the input
    wire: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class SlowCancel:
    """A cancel whose move is held up."""

    number: int
    hold: Hold
    task: asyncio.Task[Reply]


class BatchMachine(RuleBasedStateMachine):
    """The life of a few batches. Numbers are the reference's; `seen` has the ids."""

    template: ClassVar[Template]
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="batchline-model-", dir=MEMORY))
        self.world = World(self.root, self.template)
        self.model = Reference(NOW)
        self.inputs: list[tuple[str, bytes]] = []  # id and content
        self.seen: list[Seen] = []
        self.cancels: list[SlowCancel] = []

    # -- one step --------------------------------------------------------------------------

    def do(self, work: Coroutine[Any, Any, Any] | None, *effects: Effect) -> Any:
        """Do it, and have the reference do it; its result. None when the server crashed in it."""
        type(self).steps += 1
        before = copy.deepcopy(self.model)
        task = None
        if work is not None:
            task = self.world.loop.create_task(work)
            self.world.loop.settle()
        if self.world.server.life.dead:
            self._recover(before, effects)
            return None
        for effect in effects:
            effect(self.model)
        self.model.go_on(self._held())
        if task is None:
            return None
        assert task.done(), f"this waits for something: {task}"
        return task.result()

    def _recover(self, before: Reference, effects: Sequence[Effect]) -> None:
        """Start the next life; what it shows tells how far the step had come."""
        self.cancels.clear()
        self.world.crash()
        listed = self._listed()
        possible = []
        for count in range(len(effects) + 1):
            model = copy.deepcopy(before)
            for effect in effects[:count]:
                effect(model)
            model.start_again()
            if len(model.batches) == len(listed):
                possible.append(model)
        for wire in listed[len(self.seen) :]:
            source = [each for each, _ in self.inputs].index(wire["input_file_id"])
            self.seen.append(Seen(wire["id"], source))
        held = self._held()
        for model in possible:
            model.go_on(held)
        shown = [_shown(wire) for wire in listed]
        fitting = [m for m in possible if [batch.shown for batch in m.batches] == shown]
        assert fitting, (
            f"after the crash there is\n{shown}\nwhich is none of\n"
            f"{[[batch.shown for batch in m.batches] for m in possible]}"
        )
        # Of two that look alike the longer one: a deleted file is not shown in a batch.
        self.model = next((m for m in fitting if self._files_fit(m, listed)), fitting[-1])

    def _held(self) -> dict[int, Held]:
        """What holds up which batch at this moment, all of it the test's own doing."""
        server, held = self.world.server, dict[int, Held]()

        def holds(batch_id: str, kind: Held) -> None:
            number = self._number(batch_id)
            held[number] = max(kind, held.get(number, kind))

        for job in server.jobs.waiting:
            holds(job.batch_id, Held.END if job.leftovers else Held.PLAN)
        for _, shard in server.executor.shards():
            holds(shard.key.batch_id, Held.END)
        for hold in server.life.holds:
            if not (hold.reached and hold.awaited):
                continue
            match hold.call:
                case "move":
                    holds(hold.batch_id, Held.END if hold.after else Held.MOVE)
                case "start_batch":
                    holds(hold.batch_id, Held.PLAN)
                case "finalize" if not hold.after:
                    holds(hold.batch_id, Held.END)
        return held

    def _number(self, batch_id: str) -> int:
        """The batch's number; of one whose id no answer has told yet, the one that it will have."""
        numbers = (number for number, one in enumerate(self.seen) if one.id == batch_id)
        return next(numbers, len(self.seen))

    # -- what clients do -------------------------------------------------------------------

    @initialize(counts=st.lists(st.integers(1, MOST_LINES), min_size=1, max_size=3))
    def begin(self, counts: Sequence[int]) -> None:
        for count in counts:
            self._upload(count, good=True)
        for source in range(len(counts)):
            self._create(source, "1h", None)
            self.end_job(self.world.server.jobs.waiting[0])

    @precondition(lambda self: len(self.seen) < MOST_BATCHES)
    @rule(which=_some, window=st.sampled_from(list(WINDOWS)), key=_key)
    def create(self, which: int, window: str, key: str | None) -> None:
        self._create(which % len(self.inputs), window, key)

    @precondition(lambda self: len(self.seen) < MOST_BATCHES)
    @rule(count=st.integers(1, MOST_LINES), good=_mostly, start=_mostly, hold=_hold)
    def upload_and_create(
        self, count: int, good: bool, start: bool, hold: tuple[str, bool] | None
    ) -> None:
        """A new batch, often one that runs at once, and whose end or next move is held up."""
        self._upload(count, good=good)
        number = len(self.seen)
        self._create(len(self.inputs) - 1, "10s", None)
        if start and number < len(self.seen):
            self._start(number)
        if hold is not None and number < len(self.seen):
            self.hold_up(self.seen[number].id, *hold)

    def _start(self, number: int) -> None:
        for job in self.world.server.jobs.waiting:
            if job.batch_id == self.seen[number].id:
                self.end_job(job)
                return

    def _upload(self, count: int, *, good: bool) -> None:
        start = 100 * len(self.inputs)
        content = make_lines(count, start=start) + (b"" if good else b"{}\n")
        parts = form(part("purpose", b"batch"), part("file", content, filename="in.jsonl"))
        # It does not crash here: that is for tests/fault/test_upload_deaths.py.
        self.world.server.life.left = None
        request = self.world.request("POST", "/v1/files", parts, FORM)
        lines = [line_id(start + number) for number in range(count)]
        reply = self.do(request, lambda model: model.upload(lines, good=good))
        assert reply.status == 200, reply
        self.inputs.append((reply.json["id"], content))

    def _create(self, source: int, window: str, key: str | None) -> None:
        numbers: list[int | None] = []
        order = {
            "input_file_id": self.inputs[source][0],
            "endpoint": "/v1/chat/completions",
            "completion_window": window,
            "idempotency_key": key,
        }
        reply = self.do(
            self.world.request("POST", "/v1/batches", json.dumps(order).encode()),
            lambda model: numbers.append(model.create(source, WINDOWS[window], key)),
        )
        if reply is not None:
            self._created(reply, source, numbers[-1])

    def _created(self, reply: Reply, source: int, number: int | None) -> None:
        if number is None:
            assert reply.status == 409, reply
            return
        assert reply.status == 200, reply
        if number == len(self.seen):
            assert reply.json["status"] == "validating"
            self.seen.append(Seen(reply.json["id"], source))
        assert reply.json["id"] == self.seen[number].id

    @precondition(lambda self: self._going())
    @rule(which=_some)
    def cancel(self, which: int) -> None:
        self.cancel_number(self._likely(which))

    def cancel_number(self, number: int) -> None:
        codes: list[int] = []
        reply = self.do(
            self.world.request("POST", f"{self._path(number)}/cancel"),
            lambda model: codes.append(model.cancel(number)),
        )
        if reply is not None:
            self._cancelled(reply, codes[-1])

    def _likely(self, which: int) -> int:
        """One of the batches, but more likely one that runs, and most likely one that ends.

        A cancel too early is the end of most histories, and the end of a batch is short.
        """
        chances = list(range(len(self.seen)))
        for number in self._going():
            batch = self.model.batches[number]
            chances += [number] * (20 if batch.status == "finalizing" else 4 * batch.started)
        return chances[which % len(chances)]

    def _cancelled(self, reply: Reply, code: int) -> None:
        assert reply.status == code, reply
        if code == 200 and reply.json["status"] == "cancelling":
            # Whoever was told this may rely on it: nothing of the batch is sent any more.
            batch_id = reply.json["id"]
            closed = self.world.server.executor.is_closed(batch_id)
            assert closed or self._wire(batch_id)["status"] == "cancelled"

    @precondition(lambda self: self._going() and not self.cancels)
    @rule(which=_some)
    def cancel_slowly(self, which: int) -> None:
        """A cancel that has read the batch, and whose move takes its time."""
        number = self._likely(which)
        self.world.server.life.left = None
        hold = self.world.hold("cancel", self.seen[number].id, after=False)
        request = self.world.request("POST", f"{self._path(number)}/cancel")
        task = self.world.loop.create_task(request)
        self.world.loop.settle()
        if task.done():  # it was cancelled before
            self.world.release(hold)
            self._cancelled(task.result(), self.model.cancel(number))
        else:
            self.cancels.append(SlowCancel(number, hold, task))

    def cancel_arrives(self) -> None:
        slow = self.cancels.pop()
        codes: list[int] = []

        async def arrives() -> Reply:
            self.world.server.life.holds.remove(slow.hold)
            slow.hold.go.set_result(None)
            return await slow.task

        reply = self.do(arrives(), lambda model: codes.append(model.cancel(slow.number)))
        if reply is not None:
            self._cancelled(reply, codes[-1])

    @precondition(lambda self: self._going())
    @rule(which=_some, kind=st.sampled_from(["input", "output", "error"]))
    def delete_and_sweep(self, which: int, kind: str) -> None:
        number = which % len(self.seen)
        if kind == "input":
            self._delete_input(self.seen[number].source)
        elif (file_id := self._wire(self.seen[number].id)[f"{kind}_file_id"]) is not None:
            gone = kind in self.model.batches[number].deleted
            self._delete(file_id, gone, lambda model: model.delete_result(number, kind))
        self.do(self.world.server.maintenance.sweep())

    def _delete_input(self, source: int) -> None:
        gone = self.model.inputs[source].deleted
        self._delete(self.inputs[source][0], gone, lambda model: model.delete_input(source))

    def _delete(self, file_id: str, gone: bool, effect: Effect) -> None:
        reply = self.do(self.world.request("DELETE", f"/v1/files/{file_id}"), effect)
        assert reply is None or reply.status == (404 if gone else 200), reply

    # -- what children and workers do ------------------------------------------------------

    @precondition(lambda self: self._under_way())
    @rule(which=_some, succeeded=_answers, commit=st.booleans(), hold=_hold)
    def go_on(
        self,
        which: int,
        succeeded: Sequence[bool],
        commit: bool,
        hold: tuple[str, bool] | None,
    ) -> None:
        """Something that the test holds goes on: a job ends, a line is answered, a call is made.

        What the server does then of itself may be held up in its turn.
        """
        under_way = self._under_way()
        batch_id, goes_on = under_way[which % len(under_way)]
        if hold is not None:
            self.hold_up(batch_id, *hold)
        goes_on(succeeded, commit)

    @precondition(lambda self: self._under_way())
    @rule(which=_some, succeeded=_answers)
    def go_on_with_more(self, which: int, succeeded: Sequence[bool]) -> None:
        """The same three times, and at once: most of what happens is that batches go on."""
        for _ in range(3):
            if under_way := self._under_way():
                _, goes_on = under_way[which % len(under_way)]
                goes_on(succeeded, True)

    def _under_way(self) -> list[tuple[str, Callable[[Sequence[bool], bool], None]]]:
        """All that could go on now, and for which batch."""
        return [
            *((job.batch_id, partial(self.end_job, job)) for job in self.world.server.jobs.waiting),
            *(
                (shard.key.batch_id, partial(self._answer, worker, shard))
                for worker, shard in self.unanswered()
            ),
            *(
                (shards[0].key.batch_id, partial(self._commit_group, worker, shards))
                for worker in self.world.server.executor.workers
                if (shards := _answered(worker))
            ),
            *((batch_id, partial(self._let_go, batch_id)) for batch_id in self._stopped()),
        ]

    def end_job(self, job: WaitingJob, *_: object) -> None:
        """A validation is done, or the lines that never ran are written."""
        number = self._number(job.batch_id)
        good = self.model.inputs[self.seen[number].source].good
        held = any(
            hold.call == "start_batch" and hold.batch_id == job.batch_id and not hold.after
            for hold in self.world.server.life.holds
        )
        effects: list[Effect] = []
        if not job.leftovers and not (held and good):
            effects.append(lambda model: model.plan(number, good=good))

        async def end() -> None:
            job.go.set_result(None)

        self.do(end(), *effects)

    def _answer(
        self, worker: Worker, shard: HeldShard, succeeded: Sequence[bool], commit: bool
    ) -> None:
        """The backend answers lines of one shard; they may be committed at once."""
        for entry, good in zip(shard.in_flight, succeeded, strict=False):
            shard.answered[entry] = good
        if commit:
            self._commit(worker, [shard])

    def _commit_group(self, worker: Worker, shards: Sequence[HeldShard], *_: object) -> None:
        self._commit(worker, shards)

    def _commit(self, worker: Worker, shards: Sequence[HeldShard]) -> None:
        """A worker commits what some of its shards have, in one group."""
        settled = [self._settles(shard) for shard in shards]

        def effect(model: Reference) -> None:  # of one transaction
            for settles in settled:
                settles(model)

        accepted = self.do(self.world.server.executor.commit(worker, shards), effect)
        assert accepted is None or all(accepted)

    def _settles(self, shard: HeldShard) -> Effect:
        number, results = self._number(shard.key.batch_id), shard.results()
        return lambda model: model.settle(number, results)

    def _let_go(self, batch_id: BatchId, *_: object) -> None:
        """The running requests of a stopped batch have ended, one way or the other."""
        effects = [
            self._settles(shard)
            for _, shard in self._shards()
            if shard.key.batch_id == batch_id and shard.answered
        ]
        self.do(self.world.server.executor.let_go(batch_id), *effects)

    @precondition(lambda self: self._shards())
    @rule(which=_some, succeeded=_answers, last_commits=st.booleans())
    def lose_worker(self, which: int, succeeded: Sequence[bool], last_commits: bool) -> None:
        """A worker dies with results that it has not committed, or just has."""
        shards = self._shards()
        worker, shard = shards[which % len(shards)]
        self._answer(worker, shard, succeeded, False)
        effects = [self._settles(shard) for shard in _answered(worker)] if last_commits else []
        self.do(self.world.server.executor.lose(worker, last_commits=last_commits), *effects)

    @precondition(lambda self: self.world.server.executor.late)
    @rule(which=_some)
    def commit_late(self, which: int) -> None:
        """A commit of a dead worker arrives: its epoch is over."""
        executor = self.world.server.executor
        worker, commit = executor.late[which % len(executor.late)]
        assert not self.do(executor.deliver(worker, commit))

    @precondition(lambda self: self.world.server.executor.accepted)
    @rule(which=_some)
    def commit_again(self, which: int) -> None:
        """The answer to a commit was lost, and it comes again: nothing is counted twice."""
        executor = self.world.server.executor
        worker, commit = executor.accepted[which % len(executor.accepted)]
        self.do(executor.deliver(worker, commit))

    # -- what else happens -----------------------------------------------------------------

    @precondition(lambda self: self._time_matters())
    @rule(seconds=st.sampled_from([2, 6, 11]), which=_some, hold=_hold)
    def pass_time(self, seconds: int, which: int, hold: tuple[str, bool] | None) -> None:
        if hold is not None:
            self.hold_up(self.seen[self._likely(which)].id, *hold)
        self.pass_seconds(seconds)

    def pass_seconds(self, seconds: int) -> None:
        self.model.now += seconds

        async def passes() -> None:
            self.world.loop.skip(seconds)

        self.do(passes())

    def hold_up(self, batch_id: str, call: str, after: bool) -> None:
        if not any(hold.batch_id == batch_id for hold in self._runner_holds()):
            self.world.hold(call, batch_id, after=after)

    @precondition(lambda self: self.cancels or self._reached())
    @rule(which=_some)
    def release(self, which: int) -> None:
        """A call that was held up is made, or answered."""
        holds = [*self._reached(), *(None for _ in self.cancels)]
        if (hold := holds[which % len(holds)]) is None:
            self.cancel_arrives()
        else:
            self._release(hold)

    def _release(self, hold: Hold) -> None:
        number = self._number(hold.batch_id)
        effects: list[Effect] = []
        if hold.reached and not hold.after:
            if hold.call == "start_batch":
                effects.append(lambda model: model.plan(number, good=True))
            elif hold.move is not None:
                from_status, event = hold.move
                effects.append(lambda model: model.move(number, from_status, event))

        async def go() -> None:
            self.world.server.life.holds.remove(hold)
            hold.go.set_result(None)

        self.do(go(), *effects)

    @precondition(lambda self: self._going())
    @rule(calls=st.integers(0, MOST_CALLS), after=st.booleans())
    def crash(self, calls: int, after: bool) -> None:
        """The server dies: now (0), or at one of the next calls of its store, made or not."""
        life = self.world.server.life
        if calls == 0:
            life.dead = True
            self.do(None)
        else:
            life.left, life.after = calls, after

    # Also when all batches that there may be have ended: something must always be possible.
    @precondition(lambda self: self._going() or len(self.seen) >= MOST_BATCHES)
    @rule()
    def restart(self) -> None:
        """The server is told to end, and started again."""
        self._let_everything_go()
        for _, shard in self._shards():
            if shard.answered:
                self._settles(shard)(self.model)
        self.world.restart()
        self.model.start_again()
        self.model.go_on(self._held())

    def _let_everything_go(self) -> None:
        """Nothing is held up any more, and no crash is near."""
        self.world.server.life.left = None
        if self.cancels:
            self.cancel_arrives()
        for hold in self._runner_holds():
            self._release(hold)

    # -- what is there ---------------------------------------------------------------------

    def _shards(self) -> list[tuple[Worker, HeldShard]]:
        return list(self.world.server.executor.shards())

    def unanswered(self) -> list[tuple[Worker, HeldShard]]:
        return [each for each in self._shards() if each[1].in_flight]

    def _stopped(self) -> list[Any]:
        """Batches with a closed gate of which shards are held."""
        closed = self.world.server.executor.is_closed
        return list(
            dict.fromkeys(
                shard.key.batch_id for _, shard in self._shards() if closed(shard.key.batch_id)
            )
        )

    def _going(self) -> list[int]:
        return [n for n, batch in enumerate(self.model.batches) if not batch.ended]

    def _runner_holds(self) -> list[Hold]:
        return [hold for hold in self.world.server.life.holds if hold.call in MOVES]

    def _reached(self) -> list[Hold]:
        return [hold for hold in self._runner_holds() if hold.reached]

    def _time_matters(self) -> bool:
        """Whether a window may close soon, or a grace is running out."""
        soon = self.model.now + 2 * WINDOWS["10s"]
        return bool(self._stopped()) or any(
            self.model.batches[number].expires_at <= soon for number in self._going()
        )

    def _path(self, number: int) -> str:
        return f"/v1/batches/{self.seen[number].id}"

    def _wire(self, batch_id: str) -> dict[str, Any]:
        wire = self.world.get(f"/v1/batches/{batch_id}").json
        assert isinstance(wire, dict)
        return wire

    def _listed(self) -> list[dict[str, Any]]:
        """Every batch, oldest first."""
        page = self.world.get("/v1/batches?limit=100").json
        return list(reversed(page["data"]))

    # -- what has to hold ------------------------------------------------------------------

    @invariant()
    def is_as_the_reference_has_it(self) -> None:
        assert self.world.troubles == []
        listed = self._listed()
        assert [wire["id"] for wire in listed] == [one.id for one in self.seen]
        for number, wire in enumerate(listed):
            batch, seen = self.model.batches[number], self.seen[number]
            assert _shown(wire) == batch.shown, f"batch {number}: {wire}"
            if wire != seen.wire:
                _assert_follows(seen.wire, wire)
                seen.wire = wire
                self._look_at_results(number, batch, seen)
        assert self._files_fit(self.model, listed)
        self._nobody_idles()

    def _look_at_results(self, number: int, batch: Batch, seen: Seen) -> None:
        """What is committed can be read, and once the batch has ended it is in its files."""
        if batch.started and "output" not in batch.deleted:
            results = self.world.get(f"{self._path(number)}/results")
            assert _custom_ids(results.body) == batch.output
        if batch.ended:
            self._look_at_files(batch, seen)

    def _look_at_files(self, batch: Batch, seen: Seen) -> None:
        """The files of a batch that has just ended: each line once, as the reference says."""
        for kind in ("output", "error"):
            if seen.wire[f"{kind}_file_id"] is not None and kind not in batch.deleted:
                seen.files[kind] = self._content(seen, kind)
        output, errors = seen.files.get("output"), seen.files.get("error")
        if not batch.deleted:
            wire = dict(seen.wire)
            wire["request_counts"] = SimpleNamespace(**wire["request_counts"])
            wire["usage"] = SimpleNamespace(**wire["usage"])
            content = self.inputs[seen.source][1]
            assert_conserved(content, SimpleNamespace(**wire), output, errors)
            assert _custom_ids(output or b"") == batch.output
            assert _codes(errors or b"") == batch.errors

    def _content(self, seen: Seen, kind: str) -> bytes:
        reply = self.world.get(f"/v1/files/{seen.wire[f'{kind}_file_id']}/content")
        assert reply.status == 200, reply
        return reply.body

    def _files_fit(self, model: Reference, listed: Sequence[dict[str, Any]]) -> bool:
        """Whether exactly those files are there that the reference has."""
        there = {
            file_id
            for (file_id, _), one in zip(self.inputs, model.inputs, strict=True)
            if not one.deleted
        }
        for wire, batch in zip(listed, model.batches, strict=True):
            for kind in ("output", "error"):
                if wire[f"{kind}_file_id"] is not None and kind not in batch.deleted:
                    there.add(wire[f"{kind}_file_id"])
        files = self.world.get("/v1/files?limit=1000").json["data"]
        return {file["id"] for file in files} == there

    def _nobody_idles(self) -> None:
        """A worker has no room while a line waits."""
        if not self.world.server.executor.rooms():
            return
        held: dict[str, int] = {}
        for _, shard in self._shards():
            unsettled = len(shard.in_flight) + len(shard.answered)
            held[shard.key.batch_id] = held.get(shard.key.batch_id, 0) + unsettled
        busy = self._held()
        for number, batch in enumerate(self.model.batches):
            if batch.status == "in_progress" and busy.get(number) in (None, Held.END):
                waiting = len(batch.lines or ()) - len(batch.results)
                assert held.get(self.seen[number].id, 0) == waiting, f"batch {number} waits"

    # -- the end ---------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else that is what is to be reported
                self.come_to_the_end()
        finally:
            self.close()

    def close(self) -> None:
        self.world.close()
        shutil.rmtree(self.root)

    def come_to_the_end(self) -> None:
        """Every batch ends; then nothing of it changes, and no byte is there that nobody needs."""
        self._let_everything_go()
        self._end_every_batch()
        for number in range(len(self.seen)):
            self.cancel_number(number)
        self.is_as_the_reference_has_it()
        ended = [dict(one.wire) for one in self.seen]
        self.world.restart()
        for number, one in enumerate(self.seen):
            assert self._wire(one.id) == ended[number]
            for kind in one.files.keys() - self.model.batches[number].deleted:
                assert self._content(one, kind) == one.files[kind]
        self.do(self.world.server.maintenance.sweep())
        assert list(disagreements(self.root)) == []

    def _end_every_batch(self) -> None:
        """Answer what is asked until nothing goes on; a batch that is stuck then is a defect."""
        for _ in range(200):
            if not (under_way := self._under_way()):
                break
            _, goes_on = under_way[0]
            goes_on([True, False], True)
            self.is_as_the_reference_has_it()
        assert not self._going(), [batch.shown for batch in self.model.batches]


def _answered(worker: Worker) -> list[HeldShard]:
    return [shard for shard in worker.held.values() if shard.answered]


def _shown(wire: Mapping[str, Any]) -> dict[str, Any]:
    """What the reference says of a batch, read from the Batch object."""
    counts = wire["request_counts"]
    reached = (
        *("in_progress", "finalizing", "completed", "failed"),
        *("expired", "cancelling", "cancelled"),
    )
    return {
        "status": wire["status"],
        "total": counts["total"],
        "completed": counts["completed"],
        "failed": counts["failed"],
        "reached": sorted(status for status in reached if wire[f"{status}_at"] is not None),
        "output": wire["output_file_id"] is not None,
        "error": wire["error_file_id"] is not None,
        "problems": wire["errors"] is not None,
    }


def _assert_follows(before: Mapping[str, Any], wire: Mapping[str, Any]) -> None:
    """An end is final, an instant stays, a count never falls, an id never changes."""
    if not before:
        return
    if before["status"] in ENDS:
        assert wire == before
        return
    for name, value in before.items():
        if value is not None and (name.endswith(("_at", "_id")) or name in ("id", "model")):
            assert wire[name] == value, f"{name}: {value}, then {wire[name]}"
    for name, count in before["request_counts"].items():
        assert wire["request_counts"][name] >= count, f"{name} fell from {count}: {wire}"


def _custom_ids(content: bytes) -> set[str]:
    return {json.loads(line)["custom_id"] for line in content.splitlines()}


def _codes(content: bytes) -> dict[str, str | None]:
    lines = [json.loads(line) for line in content.splitlines()]
    return {line["custom_id"]: (line["error"] or {}).get("code") for line in lines}

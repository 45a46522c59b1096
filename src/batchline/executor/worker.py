"""The worker: takes lines of the shards it holds, sends them, settles them, commits them.

One event loop, one process. The control process decides which shards, how many permits, whether a
backend's circuit admits and when a gate closes; the worker obeys in the loop step in which it hears
of it. The loop over lines is exempt from task-group style (design.md 5): slots are plain tasks that
go from line to line, started when a line may go and ended when none may.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Final, assert_never

from batchline.domain import bitmap, plan, results
from batchline.domain.attempts import (
    Outcome,
    RetryIn,
    Settle,
    WaitForBackend,
    decide,
)
from batchline.domain.errors import BlobUnreadable, NotAdmitted, NotSent, SentUnanswered
from batchline.domain.lines import RequestLine, read_line
from batchline.domain.model import ShardKey
from batchline.domain.results import Failure
from batchline.domain.splices import with_model
from batchline.executor import messages as m
from batchline.executor import routed, verdict
from batchline.executor.aborts import Aborts
from batchline.executor.beside import Beside
from batchline.executor.circuit import trial_again_s
from batchline.executor.contract import Answer, BackendSettings, Released, ShardWork, Transport
from batchline.executor.failover import Failover
from batchline.executor.handing import Handing
from batchline.executor.intake import Intake
from batchline.executor.lane import Lane
from batchline.executor.level_meter import REPORT_S
from batchline.executor.metering import REMAINING_REQUESTS, REMAINING_TOKENS, Metering
from batchline.executor.proxies import Proxies
from batchline.executor.routed import RoutedLane
from batchline.executor.run_once import RunOnce
from batchline.executor.segments import SegmentWriter
from batchline.executor.shard_run import FENCED, OPEN, Gate, Line, ShardRun
from batchline.executor.streamed import StreamedAnswer, exchange
from batchline.executor.verdict import Verdict, of_usual
from batchline.telemetry import probe

_OUT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class _Ended(Enum):
    """How an attempt left its slot."""

    ANSWERED = auto()  # the line settled or waits for a retry: the backend did its part
    FAULT = auto()  # a backend outcome
    NOT_ADMITTED = auto()  # the gate closed first
    UNREADABLE = auto()  # the input is damaged
    ABORTED = auto()  # the slot was cancelled


# Through its class each look at a member costs 0.1 us on Python 3.11, and a line has ten of them.
_DONE: Final = _Ended.ANSWERED
_FAULT: Final = _Ended.FAULT
_ABORTED: Final = _Ended.ABORTED
_UNREADABLE: Final = _Ended.UNREADABLE
_ANSWERED: Final = Outcome.ANSWERED


class Worker:
    """Everything one worker process does. `send` queues a message to the control process."""

    def __init__(
        self,
        settings: m.WorkerSettings,
        *,
        send: Callable[[m.ToControl], None],
        transport: Callable[[BackendSettings], Transport],
        intake: Intake,
    ) -> None:
        self._settings = settings
        self._send = send
        self._lanes = routed.lanes_of(settings.backends, map(transport, settings.backends))
        self._routed = [lane for lane in self._lanes.values() if isinstance(lane, RoutedLane)]
        self._failover = Failover(
            send=send, settle=self._settle_late, offer=self._offer, fail=self._fail
        )
        self._proxies = Proxies(fail=self._fail)
        self._runs: dict[ShardKey, ShardRun] = {}
        self._handing = Handing(lambda key: send(m.Handed(key)), self._runs)
        self._aborts = Aborts(
            settings.backends, transport=transport, runs=lambda: list(self._runs.values())
        )
        self._metering = Metering(settings.backends, self._lanes, send=send, read=self._read)
        self._paused = False
        self._storage_trouble = False
        self._held_bytes = 0
        self._unwritten_bytes = 0  # of these: results that are not on disk
        self._intake = intake
        intake.held = lambda: self._held_bytes
        intake.unwritten = lambda: self._unwritten_bytes
        self._byte_budget = settings.byte_budget
        self._beside = Beside(settings.byte_budget)
        self._random = random.Random()  # noqa: S311  # jitter, not a secret
        self._over = asyncio.Event()
        self._failure: Exception | None = None
        self._draining = False
        self._rests = False
        self._writer = SegmentWriter(
            Path(settings.segment_directory),
            settings.worker,
            interval_s=settings.commit_interval_s,
            segment_bytes=settings.segment_bytes,
            idle_s=settings.segment_idle_s,
            send_commit=lambda commits: send(m.Commit(commits)),
            on_trouble=self._storage_changed,
            on_progress=self._bytes_left,
            on_answer=self._commit_answered,
            on_closed=lambda: send(m.SegmentClosed()),
        )

    async def run(self) -> None:
        """Work until drained; cancelled when the control process is gone.

        Raises:
            Exception: something of ours failed; the process must end, so that its shards go to a
                worker in a known state.
        """
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self._writer.run()),
                tasks.create_task(self._beat()),
                tasks.create_task(self._report()),
            ]
            await self._over.wait()
            for task in background:
                task.cancel()
        if self._failure is not None:
            raise self._failure
        await self._aborts.close()
        self._failover.close()
        self._proxies.close()
        for lane in self._lanes.values():
            await lane.transport.close()
        self._send(m.Drained())

    def _fail(self, exc: Exception) -> None:
        self._failure = exc
        self._over.set()

    async def _beat(self) -> None:
        while True:
            in_flight = {lane.backend: lane.in_flight for lane in self._lanes.values()}
            answering = [lane.backend for lane in self._lanes.values() if lane.has_answered()]
            self._send(m.Heartbeat(in_flight, answering))
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _report(self) -> None:
        metered = [lane for lane in self._lanes.values() if lane.meter is not None]
        while metered:
            await asyncio.sleep(REPORT_S)
            for lane in metered:
                if (report := lane.report()) is not None:
                    self._send(report)

    # -- what the control process says -----------------------------------------------------

    def handle(self, message: m.ToWorker) -> None:
        """Obey one message, in this loop step."""
        match message:
            case m.OpenShard(work=work):
                self._open(work)
            case m.CloseGate():
                self._close_gate(message)
            case m.SetPermits():
                self._set_permits(message)
            case m.SetCircuit():
                self._set_circuit(message)
            case m.SetRates() | m.Grant():
                self._pump(self._metering.obey(message))
            case m.Proceed(key=key, index=index):
                self._proceed(key, index)
            case m.Committed(accepted=accepted):
                self._writer.answered(accepted)
            case m.Pause(paused=paused):
                self._paused = paused
                self._judge_rest()
                self._pump_all()
            case m.Drain(grace_s=grace_s):
                self._drain(grace_s)
            case m.Configure():
                raise ValueError("configured twice")
            case _:
                assert_never(message)

    def _open(self, work: ShardWork) -> None:
        key = work.shard.key
        try:
            run = _open_run(work, on_unreadable=self._unreadable)
        except (OSError, BlobUnreadable) as exc:
            if isinstance(exc, OSError) and exc.errno in _OUT_OF:
                raise  # nothing is wrong with the input, and its batch would fail for good
            self._send(m.InputUnreadable(key))
            self._send(m.ShardReleased(Released(key=key, epoch=work.shard.epoch, settled=False)))
            return
        routed.share_out(run, self._lanes)
        self._runs[key] = run
        if self._draining:
            run.close(Gate.CLOSED)
        if work.refuse is not None:
            self._refuse(run, Failure(work.refuse))
        for index in work.lost:
            if not bitmap.is_marked(run.settled, index):
                self._settle_unsent(run.line_at(index), Failure.WORKER_LOST)
        self._offer(run)
        self._release_if_over(run)

    def _refuse(self, run: ShardRun, failure: Failure) -> None:
        """Settle every line of the shard with `failure`; none is sent."""
        while (line := run.take()) is not None:
            self._settle_unsent(line, failure)

    def _settle_unsent(self, line: Line, failure: Failure) -> None:
        request = self._read(line)
        if request is None:
            line.run.in_flight.discard(line)
            self._unreadable(line.run)
            return
        result = results.failure_line(line.line_id, request.custom_id_raw, failure)
        self._settle(line, Verdict(Outcome.REFUSED, failure.value, result))

    def _unreadable(self, run: ShardRun) -> None:
        run.close(Gate.CLOSED)
        self._send(m.InputUnreadable(run.work.shard.key))

    def _close_gate(self, order: m.CloseGate) -> None:
        runs = [run for run in self._runs.values() if run.batch_id == order.batch_id]
        for run in runs:
            run.close(Gate.CLOSED)
            run.stopping = True
        probe("gate.closed")
        on_the_wire = sum((run.on_the_wire for run in runs), Counter[str]())
        if not probe("gate.acknowledging"):
            self._send(m.GateClosed(request=order.request, in_flight=on_the_wire))
        probe("gate.acknowledged")
        self._aborts.schedule(order.batch_id, grace_s=order.grace_s, last_s=order.last_s)
        for run in runs:
            self._release_if_over(run)
        self._pump_all()  # the permits of lines that were not on the wire are free

    def _drain(self, grace_s: float) -> None:
        self._draining = True
        self._judge_rest()
        for run in list(self._runs.values()):
            run.close(Gate.CLOSED)
            self._release_if_over(run)
        self._aborts.shut_down(grace_s=grace_s)
        self._end_if_drained()

    def _set_permits(self, order: m.SetPermits) -> None:
        lane = self._lanes[order.backend]
        lane.permits, lane.permits_order = order.permits, order.order
        lane.owes_permits = True
        if lane.meter is not None:
            lane.meter.begin_anew(order.measure)
        self._settle_permits(lane)
        self._pump(lane)
        if not lane.permits:
            self._pump_others(lane)

    def _settle_permits(self, lane: Lane) -> None:
        if lane.owes_permits and lane.in_flight <= lane.permits:
            lane.owes_permits = False
            self._send(m.PermitsHeld(lane.backend, lane.permits, lane.permits_order))

    def _set_circuit(self, order: m.SetCircuit) -> None:
        lane = self._lanes[order.backend]
        lane.set_circuit(admitting=order.admitting, trials=0)
        if order.trials and not self._proxies.looks_first(lane, lambda: self._try(lane)):
            self._try(lane)
        self._pump(lane)
        if not lane.admitting:
            self._pump_others(lane)

    def _try(self, lane: Lane) -> None:
        """Have one line try the closed circuit, unless it admits by now."""
        lane.trials = 0 if lane.admitting else 1
        self._pump(lane)
        if lane.trials or lane.admitting:  # nothing could be taken: somebody else may try
            lane.trials = 0
            self._send(m.TrialOver(lane.backend, worked=False))

    # -- slots -----------------------------------------------------------------------------

    def _offer(self, run: ShardRun) -> None:
        """`run` may have lines: let every lane that may take them look."""
        if not run.has_line:
            return
        if lanes := routed.lanes_with(run):
            self._pump_evenly(lanes)
            return
        for backend in run.work.backends:
            self._lanes[backend].runs.add(run)
        for backend in run.work.backends:
            self._pump(self._lanes[backend])

    def _pump_all(self) -> None:
        if self._routed:
            self._pump_evenly(self._routed)
            return
        for lane in self._lanes.values():
            self._pump(lane)

    def _pump_others(self, lane: Lane) -> None:
        """`lane` admits nothing more: what was left to it may go elsewhere."""
        if lane in self._routed:
            self._pump_all()

    def _pump_evenly(self, lanes: Sequence[RoutedLane]) -> None:
        """As `_pump` for all of them, each line at the one with the most room."""
        left = list(lanes)
        while left:
            lane = routed.emptiest(left)
            if not self._start(lane):
                left.remove(lane)

    def _pump(self, lane: Lane) -> None:
        """Start a slot for every line that may go now."""
        while self._start(lane):
            pass

    def _start(self, lane: Lane) -> bool:
        """Start a slot for the next line, if one may go now."""
        line = self._take(lane)
        if line is None:
            return False
        line.task = asyncio.create_task(self._slot(lane, line))
        line.task.add_done_callback(partial(self._never_began, lane, line))
        return True

    def _judge_rest(self) -> None:
        """Whether no line may go, of any shard: one look at it for each line, not three."""
        self._rests = self._paused or self._storage_trouble or self._draining

    def _take(self, lane: Lane) -> Line | None:
        if self._rests:
            return None
        # At least one line is always allowed, or a line above the budget would never go.
        if self._held_bytes < self._byte_budget:
            line = lane.take()
        elif self._beside.allows(self._held_bytes):
            line = lane.take(most_bytes=self._beside.small_bytes)
        else:
            return None
        if line is None:
            return None
        line.begin(lane.backend)
        self._held_bytes += line.length
        run = line.run
        if run.cursor >= run.entry_count and not run.handed and not run.aside:
            run.input.forget()
            self._handing.handed_out(run)
        return line

    async def _slot(self, lane: Lane, first: Line) -> None:
        """Send one line after another while the lane gives lines."""
        task = asyncio.current_task()
        line: Line | None = first
        while line is not None:
            line.task = task
            try:
                await self._attempt(lane, line)
            except asyncio.CancelledError:
                # Aborted by us: this slot ends, and its permit may serve another line.
                asyncio.get_running_loop().call_soon(self._pump, lane)
                raise
            except Exception as exc:  # noqa: BLE001  # a fault of ours must end the worker loudly
                self._fail(exc)
                return
            finally:
                line.task = None
                if lane.owes_permits:
                    self._settle_permits(lane)
            line = self._take(lane)

    def _never_began(self, lane: Lane, line: Line, task: asyncio.Task[None]) -> None:
        """Make up for a slot that was cancelled before its first step, when not even a `finally`
        runs: its line would be under way for ever, and keep its shard and its permit."""
        if line.task is task:  # a slot that began has taken this back
            line.task = None
            self._ended(lane, line, _ABORTED)
            self._settle_permits(lane)
            self._pump(lane)

    async def _attempt(self, lane: Lane, line: Line) -> None:
        """One attempt at `line`, from its bytes in the input to what follows from its end."""
        ended = _ABORTED
        try:
            if line.run.work.announced:
                await self._announce(line)
            request = self._read(line)
            if request is None:
                ended = _UNREADABLE
                return
            pieces = None
            if lane.edits is not None:
                edited = lane.edits.made(line.run.work.endpoint, request.body)
                if edited is None:
                    ended = _UNREADABLE
                    return
                body, pieces = edited
                request = RequestLine(request.custom_id_raw, body)
            try:
                answer = await self._sent(lane, line, request.body, pieces)
                probe("worker.answered")
                if line.doomed:
                    await _until_called_off()
            except asyncio.CancelledError:
                self._keep_partial(line, pieces)
                raise
            except NotAdmitted:
                line.attempt -= 1
                ended = _Ended.NOT_ADMITTED
                return
            except (NotSent, SentUnanswered) as exc:
                if line.doomed:
                    await self._until_cut_off(line, pieces)
                found = verdict.of_error(
                    exc, line_id=line.line_id, custom_id_raw=request.custom_id_raw
                )
            else:
                told = answer.headers
                if REMAINING_REQUESTS in told or REMAINING_TOKENS in told:
                    self._metering.heard(lane, line, answer)
                usual = of_usual(answer, line.line_id, request.custom_id_raw)
                if usual is not None:  # nearly always, and nothing is to be decided
                    self._answered(lane, line, usual)
                    ended = _DONE
                    return
                found = self._judged(lane, line, answer, request.custom_id_raw)
            ended = self._apply(lane, line, found)
        finally:
            self._ended(lane, line, ended)

    async def _announce(self, line: Line) -> None:
        """Have the control process know of the line before anything of it is touched."""
        run = line.run
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        run.announced[line.index] = heard
        self._send(m.Trying(run.work.shard.key, line.index))
        try:
            await heard
        finally:
            run.announced.pop(line.index, None)

    def _proceed(self, key: ShardKey, index: int) -> None:
        run = self._runs.get(key)
        heard = run.announced.get(index) if run is not None else None
        if heard is not None and not heard.done():
            heard.set_result(None)

    def _read(self, line: Line) -> RequestLine | None:
        try:
            run = line.run
            length = line.length
            raw = run.input.read(line.offset, length)
            if len(raw) != length:
                return None
            request = read_line(raw)
            model = run.work.send_as
            return request if model is None else _as_sent(request, model)
        except (OSError, BlobUnreadable):
            return None

    def _sent(
        self, lane: Lane, line: Line, body: bytes, pieces: StreamedAnswer | None
    ) -> Awaitable[Answer]:
        """Send the line; what is given is to be awaited at once, and raises as `Transport.send`."""
        line.attempt += 1
        headers = {"idempotency-key": line.idempotency_key}
        callers = self._aborts.callers
        if callers and lane.backend in callers:
            body = callers[lane.backend].tag(line, body, headers)
        probe("worker.dispatching")
        path = line.run.path
        if pieces is None:
            return lane.transport.send(path, body, headers=headers, before_write=line.admit)
        return exchange(
            lane.transport,
            path,
            body,
            headers=headers,
            before_write=line.admit,
            pieces=pieces,
        )

    def _judged(self, lane: Lane, line: Line, answer: Answer, custom_id_raw: bytes) -> Verdict:
        """The verdict on an unusual answer."""
        return verdict.of_answer(
            answer,
            line_id=line.line_id,
            custom_id_raw=custom_id_raw,
            model_is_listed=lane.backend in line.run.work.listed_by,
            now=time.time(),
        )

    async def _until_cut_off(self, line: Line, pieces: StreamedAnswer | None) -> None:
        """As `_until_called_off`; what had come of the answer is kept."""
        try:
            await _until_called_off()
        finally:
            self._keep_partial(line, pieces)

    def _keep_partial(self, line: Line, pieces: StreamedAnswer | None) -> None:
        """The line was cut off: what came of it goes with the shard's next commit."""
        body = None if pieces is None else pieces.partial()
        if body is not None and (kept := line.run.keep_partial(line, body)):
            self._held_bytes += kept
            self._unwritten_bytes += kept
            self._writer.dirty(line.run)

    def _answered(self, lane: Lane, line: Line, found: Verdict) -> None:
        """Do what follows from an answer with a result."""
        lane.answers += 1
        if lane.rates is not None:
            lane.rates.ended(line, _ANSWERED, found.usage)
        if lane.meter is not None:
            lane.meter.answered(line.began, found.usage)
        self._settle(line, found)

    def _apply(self, lane: Lane, line: Line, found: Verdict) -> _Ended:
        """Do what follows from the verdict."""
        if found.outcome is _ANSWERED:
            self._answered(lane, line, found)
            return _DONE
        rates = lane.rates
        if rates is not None:
            rates.ended(line, found.outcome, found.usage)
        if found.page:
            found = self._proxies.judged(lane, line, found)
        if found.answered:
            line.answers += 1
            lane.answers += not found.page
        decision = decide(
            found.outcome,
            attempt=line.attempt,
            policy=self._settings.retry,
            roll=self._random.random(),
            retry_after_s=found.retry_after_s,
        )
        match decision:
            case Settle():
                if found.outcome is Outcome.BROKEN:
                    return self._broken(lane, line, found, retry_in_s=None)
                self._settle(line, found)
            case RetryIn(delay_s=delay_s):
                return self._broken(lane, line, found, retry_in_s=delay_s)
            case WaitForBackend() if rates is not None and rates.counts and found.is_rate:
                line.attempt -= 1
                wait_s = rates.refused(line, found.retry_after_s, self._random.random())
                if wait_s is None:
                    self._settle(line, found)
                else:
                    self._retry_later(line, wait_s)
                return _DONE
            case WaitForBackend():
                line.attempt -= 1
                if line.trial and found.answered:
                    # It may be about this line: the next trial is to be another.
                    self._retry_later(line, trial_again_s(line.sends, self._random.random()))
                else:
                    line.run.put_back(line)
                lane.fault()
                self._send(
                    m.BackendFault(
                        backend=lane.backend,
                        outcome=found.outcome.value,
                        reason=found.reason,
                        retry_after_s=found.retry_after_s,
                        trial=line.trial,
                        in_flight=lane.in_flight,
                    )
                )
                return _FAULT
            case _:
                assert_never(decision)
        return _DONE

    def _broken(
        self, lane: Lane, line: Line, found: Verdict, *, retry_in_s: float | None
    ) -> _Ended:
        """The attempt broke; None: by its count it was the line's last."""
        failed_trial = self._failover.note(lane, line, found)
        if retry_in_s is not None:
            self._retry_later(line, retry_in_s)
        elif not self._failover.holds(lane, line, found):
            self._settle(line, found)
        return _FAULT if failed_trial else _DONE

    def _settle_late(self, line: Line, found: Verdict) -> None:
        """Settle a line that waited for it outside of a slot."""
        self._settle(line, found)
        if line.run.returned:
            self._offer(line.run)
        self._release_if_over(line.run)

    def _settle(self, line: Line, found: Verdict) -> None:
        run = line.run
        result = found.result
        if run.gate is FENCED or result is None:
            run.in_flight.discard(line)
            return
        size = run.settle(line, result, succeeded=found.outcome is _ANSWERED, usage=found.usage)
        self._held_bytes += size
        self._unwritten_bytes += size
        self._writer.dirty(run)

    def _retry_later(self, line: Line, delay_s: float) -> None:
        run = line.run
        run.in_flight.discard(line)
        if run.gate is Gate.OPEN:
            run.waiting[line] = asyncio.get_running_loop().call_later(
                delay_s, self._retry_due, line
            )

    def _retry_due(self, line: Line) -> None:
        del line.run.waiting[line]
        line.run.returned.append(line)
        if self._handing.unsaid:
            self._handing.say()
        self._offer(line.run)

    def _ended(self, lane: Lane, line: Line, ended: _Ended) -> None:
        """Whatever happened: the permit and the bytes are free, and the shard may be over."""
        run = line.run
        if run.work.announced:
            self._send(m.Tried(run.work.shard.key, line.index))
        held = self._held_bytes
        self._held_bytes = held - line.held_bytes
        line.held_bytes = 0
        answered = ended is _DONE
        if line.trial and ended is not _FAULT:
            self._send(m.TrialOver(lane.backend, worked=answered))
            if answered:
                self._proxies.worked(lane)
        lane.ended(line, answered)
        if lane.rates is not None:
            lane.rates.over(line, written=line.written)
        if run.gate is not OPEN:
            run.note_end(line, aborted=ended is _ABORTED)
        if ended is _UNREADABLE:
            self._unreadable(run)
        if line in run.in_flight:  # neither settled nor waiting for a retry
            run.put_back(line)
        if run.returned:
            self._offer(run)
        if held >= self._byte_budget:
            self._beside.freed(self._held_bytes)
            self._pump_all()
        if not run.in_flight:  # else it is not over
            self._release_if_over(run)

    # -- commits and the end of shards -----------------------------------------------------

    def _commit_answered(self, run: ShardRun, accepted: bool) -> None:
        if not accepted and run.gate is not Gate.FENCED:
            dropped = run.uncommitted_bytes
            run.close(Gate.FENCED)
            self._bytes_left(dropped)
            self._aborts.end_run(run)
        self._release_if_over(run)

    def _release_if_over(self, run: ShardRun) -> None:
        key = run.work.shard.key
        if not run.is_over or self._runs.get(key) is not run:
            return
        if not run.is_durable:
            if run.gate is Gate.CLOSED or run.all_settled:
                self._writer.hurry()  # somebody waits for this shard's end
            return
        del self._runs[key]
        if self._handing.unsaid:
            self._handing.say()
        routed.leave(run, self._lanes)
        os.close(run.input_fd)
        probe("shard.releasing")
        self._send(
            m.ShardReleased(
                Released(
                    key=key,
                    epoch=run.work.shard.epoch,
                    settled=run.all_settled and run.gate is not FENCED,
                    ends=run.ends,
                )
            )
        )
        probe("shard.released")
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._draining and not self._runs:
            self._over.set()

    def _storage_changed(self, reason: str | None) -> None:
        self._storage_trouble = reason is not None
        self._judge_rest()
        self._send(m.StorageTrouble(reason))
        self._pump_all()

    def _bytes_left(self, count: int) -> None:
        was_over = self._held_bytes >= self._byte_budget
        self._held_bytes -= count
        self._unwritten_bytes -= count
        self._intake.freed()
        if was_over:
            self._beside.freed(self._held_bytes)
            self._pump_all()


async def _until_called_off() -> None:
    """Wait for the end of the call that has the backend abort a request: it cancels who waits.

    What came of the request meanwhile may be half a text.
    """
    await asyncio.Event().wait()


def _as_sent(request: RequestLine, model: str) -> RequestLine:
    """The line with the backends' name of its model, where the file has an alias."""
    return RequestLine(request.custom_id_raw, with_model(request.body, model))


def _open_run(work: ShardWork, *, on_unreadable: Callable[[ShardRun], None]) -> ShardRun:
    shard = work.shard
    offset, length = plan.span(shard.first_entry, shard.entries)
    plan_fd = os.open(work.plan_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        followers = plan.check_header(os.pread(plan_fd, plan.HEADER_BYTES, 0))
        entries = os.pread(plan_fd, length, offset)
    except ValueError as exc:
        raise BlobUnreadable(str(exc)) from exc
    finally:
        os.close(plan_fd)
    if len(entries) != length:
        raise BlobUnreadable("the plan is shorter than its shards")
    input_fd = os.open(work.input_path, os.O_RDONLY | os.O_CLOEXEC)
    if followers:
        return RunOnce.begin(work, input_fd, entries, on_unreadable=on_unreadable)
    return ShardRun.open(work, input_fd=input_fd, entries=entries)

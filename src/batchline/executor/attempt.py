"""One attempt at a line, from its bytes in the input to the verdict on what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from batchline.domain.errors import NotAdmitted, NotSent, SentUnanswered
from batchline.domain.model import ShardKey
from batchline.executor import messages as m
from batchline.executor import verdict
from batchline.executor.aborts import Aborts
from batchline.executor.byte_budget import ByteBudget
from batchline.executor.lane import Lane
from batchline.executor.line import Line
from batchline.executor.metering import REMAINING_REQUESTS, REMAINING_TOKENS, Metering
from batchline.executor.settling import Settling
from batchline.executor.shard_run import ShardRun
from batchline.executor.shards import Shards
from batchline.executor.slots import DONE, UNREADABLE, Ended
from batchline.executor.streamed import StreamedAnswer, exchange
from batchline.executor.transport.contract import Answer
from batchline.executor.verdict import of_usual
from batchline.telemetry import armed, probe

_NOT_ADMITTED: Final = Ended.NOT_ADMITTED


class Attempts:
    """One worker's. `dirty` has a shard committed soon."""

    def __init__(
        self,
        shards: Shards,
        settling: Settling,
        budget: ByteBudget,
        *,
        aborts: Aborts,
        metering: Metering,
        send: Callable[[m.ToControl], None],
        dirty: Callable[[ShardRun], None],
    ) -> None:
        self._shards = shards
        self._settling = settling
        self._answered = settling.answered
        self._budget = budget
        self._callers = aborts.callers
        self._metering = metering
        self._send = send
        self._dirty = dirty

    async def run(self, lane: Lane, line: Line) -> Ended:
        """Read the line, send it, and do what follows from its answer; how it left its slot.

        Raises:
            CancelledError: the slot was cancelled; what came of the answer is kept where it may be.
        """
        run = line.run
        if run.work.announced:
            await self._announce(line)
        request = run.requests.read(line.index)
        if request is None:
            return UNREADABLE
        body, pieces = request.body, None
        if lane.edits is not None:
            edited = lane.edits.made(run.work.endpoint, body)
            if edited is None:
                return UNREADABLE
            body, pieces = edited
        line.attempt += 1
        if armed:
            probe("worker.dispatching")
        try:
            if pieces is None and not self._callers:  # nearly always, and in one call less
                answer = await lane.transport.send(run.path, body, line.admit, line.idempotency_key)
            else:
                answer = await self._sent(lane, line, body, pieces)
            if armed:
                probe("worker.answered")
            if line.doomed:
                await _until_called_off()
        except asyncio.CancelledError:
            self._keep_partial(line, pieces)
            raise
        except NotAdmitted:
            line.attempt -= 1
            return _NOT_ADMITTED
        except (NotSent, SentUnanswered) as exc:
            if line.doomed:
                await self._until_cut_off(line, pieces)
            found = verdict.of_error(exc, line_id=line.line_id, custom_id_raw=request.custom_id_raw)
            return self._settling.apply(lane, line, found)
        told = answer.headers
        if REMAINING_REQUESTS in told or REMAINING_TOKENS in told:
            self._metering.heard(lane, line, answer)
        usual = of_usual(answer, line.line_id, request.custom_id_raw)
        if usual is not None:  # nearly always, and nothing is to be decided
            self._answered(lane, line, usual[0], usual[1])
            return DONE
        found = verdict.of_answer(
            answer,
            line_id=line.line_id,
            custom_id_raw=request.custom_id_raw,
            model_is_listed=bool(run.work.listed_by),
            now=time.time(),
        )
        return self._settling.apply(lane, line, found)

    def proceed(self, key: ShardKey, index: int) -> None:
        """The control process knows of the line that was announced: it may be sent."""
        run = self._shards.runs.get(key)
        heard = run.announced.get(index) if run is not None else None
        if heard is not None and not heard.done():
            heard.set_result(None)

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

    def _sent(
        self, lane: Lane, line: Line, body: bytes, pieces: StreamedAnswer | None
    ) -> Awaitable[Answer]:
        """Send the line with an id for calls, or have its answer streamed; as `Transport.send`."""
        headers: dict[str, str] = {}
        if lane.backend in self._callers:
            body = self._callers[lane.backend].tag(line, body, headers)
        return exchange(
            lane.transport,
            line.run.path,
            body,
            before_write=line.admit,
            key=line.idempotency_key,
            headers=headers,
            pieces=pieces,
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
            self._budget.keep(kept)
            self._dirty(line.run)


async def _until_called_off() -> None:
    """Wait for the end of the call that has the backend abort a request: it cancels who waits.

    What came of the request meanwhile may be half a text.
    """
    await asyncio.Event().wait()

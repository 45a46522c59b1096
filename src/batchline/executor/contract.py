"""How lines reach a backend: what the scheduler may ask of an executor, and what it is told.

`local.LocalExecutor` keeps the promise with child processes on this machine. What is asked of one
HTTP exchange with a backend is in `transport.contract`.

Vocabulary: a worker *holds* shards. Its *gate* for a batch is open or closed; with the gate closed
no first byte of a request of that batch is handed to a socket. A *permit* is the right to have one
request in flight at one backend.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from batchline.domain.ids import BatchId, WorkerId
from batchline.domain.model import Shard, ShardCommit, ShardKey
from batchline.domain.shares import Turn


class CancelBy(StrEnum):
    """How a request that runs at a backend is ended when its time is up."""

    CLOSE = "close"  # its connection is closed
    DRAIN = "drain"  # not at all: it may run to its end, as long as a cancel may take
    CALL = "call"  # the backend is called to abort it, then its connection is closed


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortCall:
    """How a backend is called to abort one request: a POST to `path` of its host.

    `{id}` in `path` and `body` is what the request was sent with: an id of its own in the header
    `id_header` or in the top-level member `id_field` of its body, else its `Idempotency-Key`.
    """

    path: str
    body: str = '{"rid": "{id}"}'
    id_header: str | None = None
    id_field: str | None = None


class Concurrency(StrEnum):
    """How many requests may be in flight at a backend."""

    FIXED = "fixed"  # `max_in_flight`
    ADAPTIVE = "adaptive"  # what it takes, from `min_in_flight` to `max_in_flight`


class TransportName(StrEnum):
    """How requests cross the network: `AUTO` is `HTTP1` for `http://` and `GENERAL` for TLS."""

    AUTO = "auto"
    HTTP1 = "http1"
    GENERAL = "general"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """One configured inference server.

    `base_url` ends in `/v1` (added when the user left it out). `models` None means: ask
    `/v1/models`. `headers` go out with every request; the key, if any, is already among them as
    `Authorization`. `max_in_flight` holds for all workers together. `transport.choice` makes its
    `transport`. `requests_per_minute` and `tokens_per_minute` hold for all workers together, None
    where no limit is known; `rate_headers`: what answers say of such limits is believed.
    `first_byte_timeout_s`: until an answer's head has come, None where only the whole is bounded.
    `stream`: generated texts are asked for as streams; `keep_partial`: what came of a
    stream that a cancel or the end of the window cut off is kept. `abort_call` is there where
    `cancel` is `call`. `stops_on_close`: somebody saw it stop generating when a connection closed.
    `asks_places`: nobody set `max_in_flight`, so as many as the engine says that it runs at once,
    where it says so. `weight` is its part of the lines where several backends have room for them.
    It is looked at every `health_s`. `interactive_slowdown` (0: others are nobody's business) and
    `min_in_flight` are of use where `concurrency` is adaptive. `priority` goes out with every
    request that has none of its own.
    """

    name: str
    base_url: str
    models: Sequence[str] | None = None
    max_in_flight: int = 64
    connect_timeout_s: float = 10.0
    total_timeout_s: float = 600.0
    max_answer_bytes: int = 64 * 1024 * 1024
    headers: Mapping[str, str] | None = None
    stream: bool = False
    keep_partial: bool = False
    cancel: CancelBy = CancelBy.CLOSE
    abort_call: AbortCall | None = None
    stops_on_close: bool = False
    transport: TransportName = TransportName.AUTO
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    rate_headers: bool = True
    first_byte_timeout_s: float | None = None
    weight: float = 1.0
    health_s: float = 10.0
    concurrency: Concurrency = Concurrency.FIXED
    min_in_flight: int = 1
    interactive_slowdown: float = 1.3
    priority: int | None = None
    asks_places: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """A shard with all that a worker needs to run it, and nothing of the database.

    Lines are read from `input_path` by the entries of `plan_path`. `backends` are those that may
    serve its model, by name; `listed_by` are those whose own catalogue lists it, or all of them
    where it was known before: then it is not the lines' fault if it is not there. `refuse` is a
    `results.Failure`: every line is settled with it and nothing is sent. `send_as` is the backends'
    name of the model where the file has another one for it (an alias). `turn`: its right among
    the shards that run beside it.

    For shards that killed workers: `announced` asks to tell of each line before it is touched.
    `suspects`, where there are any, are the only entries (from 0) to run, one at a time; `lost` are
    settled as `worker_lost` and not sent.
    """

    shard: Shard
    endpoint: str
    input_path: str
    plan_path: str
    backends: Sequence[str]
    listed_by: Sequence[str] = ()
    announced: bool = False
    suspects: Sequence[int] = ()
    lost: Sequence[int] = ()
    refuse: str | None = None
    send_as: str | None = None
    turn: Turn = field(default_factory=Turn)

    @property
    def model(self) -> str:
        """What backends call its model."""
        return self.send_as or self.shard.model

    def served_by(self, backends: Sequence[str], listed_by: Sequence[str]) -> ShardWork:
        """The same, where these may serve it too.

        None is taken away: its lines may be in flight there, and a backend that has let go of a
        model says so for itself. A shard that no backend served is refused, and stays as it is.
        """
        if not self.backends:
            return self
        return replace(
            self,
            backends=list(dict.fromkeys((*self.backends, *backends))),
            listed_by=list(dict.fromkeys((*self.listed_by, *listed_by))),
        )


@dataclass(slots=True, kw_only=True)
class Ends:
    """How requests that ran at one backend when their gate closed came to their end; counts.

    Each of them is in exactly one of `answered` (the backend ended it, by an answer or by breaking
    the connection), `closed`, `called` (it took our call to abort it), `calls_failed` (it did not,
    and the connection was closed) and `unanswered` (cut off although its backend is to be
    drained). `finished_late`, of the answered: results that count.
    """

    answered: int = 0
    finished_late: int = 0
    closed: int = 0
    called: int = 0
    calls_failed: int = 0
    unanswered: int = 0

    @property
    def aborted(self) -> int:
        """Those that we ended."""
        return self.closed + self.called + self.calls_failed + self.unanswered

    def add(self, other: Ends) -> None:
        """Count those of `other` too."""
        self.answered += other.answered
        self.finished_late += other.finished_late
        self.closed += other.closed
        self.called += other.called
        self.calls_failed += other.calls_failed
        self.unanswered += other.unanswered


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A worker gave a shard back. All its commits were answered before this.

    `ends` tells by backend what became of the requests that ran when the gate closed; it is empty
    for a shard that ran to its end.
    """

    key: ShardKey
    epoch: int
    settled: bool
    ends: Mapping[str, Ends] = field(default_factory=dict)

    @property
    def aborted(self) -> int:
        """Requests that were in flight and were ended by us."""
        return sum(ends.aborted for ends in self.ends.values())

    @property
    def finished_late(self) -> int:
        """Results that arrived after the gate closed."""
        return sum(ends.finished_late for ends in self.ends.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class AtGate:
    """A backend at which requests of the batch may have run when its gate closed.

    `in_flight` counts them; None: a worker that may have had some was killed before it told.
    """

    backend: str
    cancel: CancelBy
    stops_on_close: bool
    in_flight: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """What is known right after a gate was closed in all workers.

    `acknowledged_s` is the time until the last acknowledgement (or until the silent were killed).
    `killed` names workers that did not acknowledge in time and were killed and reaped. A worker
    that still holds a shard of the batch `lets_go_s` after the closing is not in order.
    """

    acknowledged_s: float
    backends: Sequence[AtGate]
    killed: Sequence[WorkerId]
    lets_go_s: float

    @property
    def in_flight(self) -> int:
        """Requests on the wire at the acknowledgements, as far as they are known."""
        return sum(one.in_flight or 0 for one in self.backends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A worker that could take `shards` more shards of a model that `backend` serves.

    It could also take `others`, to run beside the shards that it has lines of for that backend:
    `open` names the batch of each of those. What belongs beside them is the scheduler's to say.
    `away` are models that the backend does not have at the moment, by its names for them: more
    shards of those would only wait. `quarantine`: it is there for the suspect lines of one shard,
    and nothing else.
    """

    worker: WorkerId
    backend: str
    shards: int
    others: int = 0
    open: Sequence[BatchId] = ()
    away: Collection[str] = ()
    quarantine: bool = False


class ExecutorEvents(Protocol):
    """What an executor tells the scheduler. Calls for one worker come one at a time, in order."""

    async def on_commit(self, worker: WorkerId, commits: Sequence[ShardCommit]) -> Sequence[bool]:
        """Accept or refuse each commit (`Store.commit`); returns only when the store answered."""

    async def on_segment_closed(self, worker: WorkerId) -> None:
        """The worker appends to none of its segments any more, and all its commits are answered."""

    async def on_released(self, worker: WorkerId, released: Released) -> None:
        """The worker no longer runs the shard."""

    async def on_lost(
        self,
        worker: WorkerId,
        held: Sequence[ShardKey],
        *,
        under_way: Mapping[ShardKey, Collection[int]],
    ) -> None:
        """The worker died or was killed, and is reaped: it can neither send nor commit.

        `under_way` has, for each announced shard, the entries (from 0) that were being tried.
        """

    async def on_input_unreadable(self, key: ShardKey) -> None:
        """The batch's input or plan is short, gone or damaged; the shard follows as released."""

    def on_handed(self, key: ShardKey) -> None:
        """Every line of the shard was sent once, so its worker may have room; never blocks."""

    def on_room(self) -> None:
        """Some worker may have room now; never blocks."""


class Executor(Protocol):
    """Runs shards somewhere, under fences and gates."""

    async def start(self, events: ExecutorEvents) -> None:
        """Start the workers; returns when each is ready or is known to be failing."""

    def rooms(self) -> Sequence[Room]:
        """Who could take another shard now."""

    def open_shard(self, worker: WorkerId, work: ShardWork) -> bool:
        """Hand a claimed shard to a worker. False when the worker is gone: the claim is void."""

    def serve(self, model: str, backends: Sequence[str], listed_by: Sequence[str]) -> None:
        """These may serve `model` (the backends' name for it) too, of all shards that are held.

        For shards that were handed out before one of them listed it. Never blocks.
        """

    def set_quarantine(self, wanted: bool) -> None:
        """Whether there is to be a worker for suspect lines, beside the others. Never blocks.

        Of its own, so that the next death can only be theirs, and stalls nobody else.
        """

    def holders(self, batch_id: BatchId) -> Mapping[ShardKey, WorkerId]:
        """Which shards of a batch are held, and by whom."""

    async def close_gate(self, batch_id: BatchId, *, grace_s: float, last_s: float) -> GateReport:
        """Close the batch's gate in every worker and wait for the acknowledgements.

        When this returns no first byte of a request of this batch will be handed to a socket:
        every worker acknowledged, or is dead and reaped. Running requests may finish for `grace_s`
        and are then ended as their backend has it (`CancelBy`), all of them after `last_s`; each
        held shard comes back through `on_released` or `on_lost`. Idempotent; a second call with
        shorter times shortens them.
        """

    async def fence(self, batch_id: BatchId) -> Sequence[WorkerId]:
        """Kill and reap every worker that still holds a shard of the batch; their ids."""

    def pause(self, reason: str) -> None:
        """Stop dispatching in all workers (a full disk); what is in flight goes on."""

    def resume(self) -> None:
        """Undo `pause`."""

    async def drain(self, *, grace_s: float) -> None:
        """Close every gate, give running requests `grace_s`, commit, and end all workers.

        Nothing is waited for longer, whatever the backends' `CancelBy`.
        """

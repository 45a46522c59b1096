"""What the control process and a worker say to each other; `framing` has it as bytes.

One stream socket per worker. The control process sends `ToWorker`, the worker answers with
`ToControl`. Order is kept in both directions, and both sides rely on it: a worker's `Released`
follows the commits it depends on. The first message of either side names its program
(`protocol.py`); no other is read before that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from batchline.domain.attempts import RetryPolicy
from batchline.domain.ids import BatchId
from batchline.domain.model import ShardCommit, ShardKey
from batchline.executor.contract import BackendSettings, Released, ShardWork
from batchline.executor.protocol import PROTOCOL
from batchline.executor.rates import Told, Want


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told once, before anything else."""

    worker: str
    segment_directory: str
    backends: Sequence[BackendSettings]
    retry: RetryPolicy
    commit_interval_s: float = 0.1  # the most that a crash can make us send again (design.md 3)
    byte_budget: int = 256 * 1024 * 1024  # request and answer bytes held in memory
    segment_bytes: int = 256 * 1024 * 1024  # a new segment begins after this
    segment_idle_s: float = 20.0  # a segment that nothing is written to for so long is closed
    heartbeat_s: float = 1.0


# -- control process to worker -----------------------------------------------------------------


class Configure(msgspec.Struct, frozen=True, tag=True):
    settings: WorkerSettings
    probes: str
    protocol: str = PROTOCOL


class OpenShard(msgspec.Struct, frozen=True, tag=True):
    work: ShardWork


class CloseGate(msgspec.Struct, frozen=True, tag=True):
    """Close the gate of a batch and acknowledge with `GateClosed`.

    What runs after `grace_s` is ended as its backend has it, what runs after `last_s` at once.
    """

    batch_id: BatchId
    request: int
    grace_s: float
    last_s: float


class SetPermits(msgspec.Struct, frozen=True, tag=True):
    """`permits` requests may be in flight at `backend`; answered by `PermitsHeld`.

    `order` numbers a worker's orders of one backend, from 1. `measure` names what the requests that
    begin from now on are to be reported under (`LaneReport`), where the limit is learnt.
    """

    backend: str
    permits: int
    order: int
    measure: int = 0


class SetCircuit(msgspec.Struct, frozen=True, tag=True):
    """Whether lines may go to a backend. `trials` lines may go although it is closed to others."""

    backend: str
    admitting: bool
    trials: int = 0


class SetAway(msgspec.Struct, frozen=True, tag=True):
    """The models that `backend` does not have now, by its names: no line of theirs goes there.

    All of them; what was said before holds no more.
    """

    backend: str
    models: Sequence[str]


class TryModel(msgspec.Struct, frozen=True, tag=True):
    """One line of `model` may go to `backend` although it is away there; see `ModelTried`."""

    backend: str
    model: str


class Serve(msgspec.Struct, frozen=True, tag=True):
    """Shards of `model` that the worker holds may go to these backends too (`ShardWork`)."""

    model: str
    backends: Sequence[str]
    listed_by: Sequence[str]


class SetRates(msgspec.Struct, frozen=True, tag=True):
    """What is counted at `backend`; what was granted before is void.

    `tokens` is all that there may ever be at once, and None where they are not counted.
    """

    backend: str
    requests: bool
    tokens: float | None


class Grant(msgspec.Struct, frozen=True, tag=True):
    """The answer to `AskRates`, late or at once: so much more may go to `backend`."""

    backend: str
    requests: int
    tokens: float


class Proceed(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Trying`: the control process knows of the line."""

    key: ShardKey
    index: int


class Committed(msgspec.Struct, frozen=True, tag=True):
    """The store's answer to the oldest unanswered `Commit`, one flag per shard commit."""

    accepted: Sequence[bool]


class Pause(msgspec.Struct, frozen=True, tag=True):
    """Dispatch nothing (True) or go on (False); what is in flight is not touched."""

    paused: bool


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Dispatch nothing more, give running requests `grace_s`, commit, release, `Drained`."""

    grace_s: float


ToWorker = (
    Configure
    | OpenShard
    | CloseGate
    | SetPermits
    | SetCircuit
    | SetAway
    | TryModel
    | Serve
    | SetRates
    | Grant
    | Proceed
    | Committed
    | Pause
    | Drain
)


# -- worker to control process -----------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The worker has recorded itself and is configured; or, where the control process is of
    another version than it, ends."""

    pid: int
    protocol: str = PROTOCOL


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The worker's event loop turns. `in_flight` counts its requests by backend; `answering` are
    those that answered a line since the last of these."""

    in_flight: Mapping[str, int] = {}
    answering: Sequence[str] = []


class GateClosed(msgspec.Struct, frozen=True, tag=True):
    """No first byte of a request of the batch will be written from now on.

    `in_flight` counts those that were, by backend.
    """

    request: int
    in_flight: Mapping[str, int]


class Commit(msgspec.Struct, frozen=True, tag=True):
    """These ranges are durable in the worker's segment; may they count?"""

    commits: Sequence[ShardCommit]


class SegmentClosed(msgspec.Struct, frozen=True, tag=True):
    """The worker has no open segment: it will not append to any that it wrote so far."""


class ShardReleased(msgspec.Struct, frozen=True, tag=True):
    released: Released


class Handed(msgspec.Struct, frozen=True, tag=True):
    """Every line of the shard has been dispatched once: there is room for another shard."""

    key: ShardKey


class PermitsHeld(msgspec.Struct, frozen=True, tag=True):
    """The worker will not have more than `permits` in flight at `backend` from now on.

    Sent once that is so; `order` is the newest one that it obeyed.
    """

    backend: str
    permits: int
    order: int


class BackendFault(msgspec.Struct, frozen=True, tag=True):
    """A backend outcome (`attempts.BACKEND_OUTCOMES`): nothing was wrong with the line.

    `reason` is shown to people: kinds, status and size, never a body. `in_flight` counts the
    worker's requests at the backend, with the one that met the fault.
    """

    backend: str
    outcome: str
    reason: str
    retry_after_s: float | None
    trial: bool
    in_flight: int = 0


class OlderAnswers(msgspec.Struct, frozen=True):
    """Answers to requests that began before the present level did.

    `seconds` they spent together at each level, by its `measure`; `before` is how many of them had
    begun before a level.
    """

    answers: int
    tokens: int
    seconds: dict[int, float]
    before: dict[int, int]


class LaneReport(msgspec.Struct, frozen=True, tag=True):
    """What a worker has at a backend whose limit is learnt, and what came of it since it last said.

    `answers`, their output `tokens` and the sum of their latencies are of requests that began
    under `measure`. `order` is the newest `SetPermits` that it obeyed. `limited`: all the time as
    many were in flight as may be.
    """

    backend: str
    measure: int
    order: int
    in_flight: int
    limited: bool
    answers: int
    tokens: int
    latency_s: float
    older: OlderAnswers | None = None


class TrialOver(msgspec.Struct, frozen=True, tag=True):
    """A trial line was answered (`worked`), or there was no line to try (not `worked`)."""

    backend: str
    worked: bool


class LaneIdle(msgspec.Struct, frozen=True, tag=True):
    """Nothing of the worker is in flight at `backend` and no line could go there (`idle`), or it is
    otherwise again. Said only where there are hardly more permits than workers."""

    backend: str
    idle: bool


class ModelAway(msgspec.Struct, frozen=True, tag=True):
    """`backend` says that it does not have `model`, which some backend lists: nothing was wrong
    with the line. `trial`: it was the one that was to try it. `broken`: it did not say that, but
    failed that line or cut it off. Otherwise as `BackendFault`."""

    backend: str
    model: str
    reason: str
    retry_after_s: float | None
    trial: bool
    broken: bool = False


class ModelTried(msgspec.Struct, frozen=True, tag=True):
    """The line that tried `model` was answered (`worked`), or came to nothing (not `worked`)."""

    backend: str
    model: str
    worked: bool


class AskRates(msgspec.Struct, frozen=True, tag=True):
    """Lines could go to `backend` if so much more were granted; it replaces an earlier ask."""

    backend: str
    want: Want


class RatesHeard(msgspec.Struct, frozen=True, tag=True):
    """What answers said of a backend's allowances since the last of these.

    They came to `tokens` more than was estimated. `requests_told` and `tokens_told` are of one
    answer, whose request went out `age_s` ago. `refused`: it was sent back for its rate.
    """

    backend: str
    tokens: float = 0.0
    requests_told: Told | None = None
    tokens_told: Told | None = None
    age_s: float = 0.0
    refused: bool = False
    retry_after_s: float | None = None


class Trying(msgspec.Struct, frozen=True, tag=True):
    """Entry `index` of an announced shard is about to be touched: not before `Proceed`."""

    key: ShardKey
    index: int


class Tried(msgspec.Struct, frozen=True, tag=True):
    """That attempt has ended, and the worker lives."""

    key: ShardKey
    index: int


class InputUnreadable(msgspec.Struct, frozen=True, tag=True):
    """The batch's input or plan is short, gone or damaged; the shard follows as released."""

    key: ShardKey


class StorageTrouble(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot write its segment (`reason`), or can again (None)."""

    reason: str | None


class Drained(msgspec.Struct, frozen=True, tag=True):
    """Everything is committed and released; the worker ends."""


ToControl = (
    Hello
    | Heartbeat
    | GateClosed
    | Commit
    | SegmentClosed
    | ShardReleased
    | Handed
    | PermitsHeld
    | BackendFault
    | LaneReport
    | LaneIdle
    | TrialOver
    | ModelAway
    | ModelTried
    | AskRates
    | RatesHeard
    | Trying
    | Tried
    | InputUnreadable
    | StorageTrouble
    | Drained
)

"""Every durable step of the product, in one table: what ends there, and what is then expected.

A step is a named point of the program (`telemetry.probe`), before and after each thing that lasts
or that another process is told. `scenes.py` plays the jobs that come by there; `test_kill.py` ends
the server, its workers or both at each of them. `make test` runs some of the rows with
their own victim, and `make faults` every victim of every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Victim(StrEnum):
    """Who is killed, with -9, in the instant in which the step is reached."""

    SERVER = "server"  # its children notice by themselves
    WORKERS = "workers"  # the server goes on; from its own steps, its job child dies too
    BOTH = "both"  # at once


class Place(StrEnum):
    """The process that comes by the step."""

    SERVER = "server"
    WORKER = "worker"
    JOB = "job"  # the child that validates and writes never-run lines


class Scene(StrEnum):
    """A job that comes by the step, and how it ends whoever dies; see `scenes.py`."""

    BATCH = "batch"  # upload, create, run: completed, every line answered
    REFUSE = "refuse"  # a file of bad lines: failed, with a reason
    SKIP = "skip"  # bad lines left out: completed, each accounted for
    CANCEL = "cancel"  # in mid-flight: cancelled, or completed where the cancel was never accepted
    FENCE = "fence"  # cancelled with workers that do not let go: cancelled all the same
    LOSS = "loss"  # a worker dies in mid-flight: completed
    EXPIRE = "expire"  # the window closes: expired
    LOST = "lost"  # the input's bytes are lost: failed, with what was settled
    DELETE = "delete"  # files deleted after the batch: no byte stays
    RETENTION = "retention"  # a file and an upload past their time: no byte stays
    PARTS = "parts"  # an upload in parts, completed: one file, no other byte
    PARTS_CANCEL = "parts-cancel"  # the same, given up: no byte stays
    KEYS = "keys"  # keys made and revoked: what was said of one holds
    FIRST = "first"  # the first start on a directory
    # Double faults: the server died before, and the restart comes by the step.
    AGAIN = "again"  # it died in mid-flight, over survivors and orphans: completed
    AGAIN_CANCEL = "again-cancel"  # it died with never-run lines half made: cancelled
    AGAIN_EXPIRE = "again-expire"  # the window closed while it was down: expired, nothing sent


# Where no worker is there yet, or a worker has no part in what happens.
_SERVER_ONLY: Final = (Victim.SERVER,)
_NO_WORKERS: Final = (Victim.SERVER, Victim.BOTH)
_VICTIMS: Final[Mapping[Scene, Sequence[Victim]]] = {
    Scene.FIRST: _SERVER_ONLY,
    Scene.KEYS: _NO_WORKERS,
    Scene.PARTS: _NO_WORKERS,
    Scene.PARTS_CANCEL: _NO_WORKERS,
    Scene.RETENTION: _NO_WORKERS,
    Scene.AGAIN: _NO_WORKERS,
    Scene.AGAIN_CANCEL: _NO_WORKERS,
    Scene.AGAIN_EXPIRE: _NO_WORKERS,
}

_ACTIONS: Final[Mapping[tuple[Place, Victim], str]] = {
    (Place.SERVER, Victim.SERVER): "kill",
    (Place.SERVER, Victim.WORKERS): "kill_children",
    (Place.SERVER, Victim.BOTH): "kill_family",
    (Place.WORKER, Victim.SERVER): "kill_parent",
    (Place.WORKER, Victim.WORKERS): "kill",
    (Place.WORKER, Victim.BOTH): "kill_both",
    (Place.JOB, Victim.SERVER): "kill_parent",
    (Place.JOB, Victim.BOTH): "kill_both",
    # A job child alone: tests/contract/test_planning.py, test_finalizer.py, and test_poison.py.
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One row. `hit`: the how-manieth time counts. `victim`: whom `make test` ends; None: nobody.

    `done`: should the server die here, what its client was asking for has happened.
    """

    scene: Scene
    probe: str
    place: Place = Place.SERVER
    hit: int = 1
    done: bool = True
    victim: Victim | None = None

    @property
    def victims(self) -> Sequence[Victim]:
        """Everybody who can be ended here."""
        allowed = _VICTIMS.get(self.scene, tuple(Victim))
        return [victim for victim in allowed if (self.place, victim) in _ACTIONS]

    def armed(self, victim: Victim) -> str:
        """What BATCHLINE_PROBES says to end `victim` here."""
        return f"{self.probe}={_ACTIONS[self.place, victim]}@{self.hit}"

    def __str__(self) -> str:
        return f"{self.scene}-{self.probe}" + (f"@{self.hit}" if self.hit > 1 else "")


S, W, B = Victim.SERVER, Victim.WORKERS, Victim.BOTH
_Quick = Victim | None


def _row(
    scene: Scene,
    probe: str,
    victim: _Quick = None,
    *,
    place: Place = Place.SERVER,
    hit: int = 1,
    done: bool = True,
) -> Step:
    return Step(scene=scene, probe=probe, place=place, hit=hit, done=done, victim=victim)


def _transaction(
    scene: Scene, name: str, before: _Quick, inside: _Quick, after: _Quick, *, hit: int = 1
) -> Iterator[Step]:
    """A transaction of the store: it has happened behind `inside`, and only there."""
    yield _row(scene, f"{name}.before", before, hit=hit, done=False)
    yield _row(scene, f"{name}.inside", inside, hit=hit, done=False)
    yield _row(scene, f"{name}.after", after, hit=hit)


def _work(scene: Scene, probe: str, victim: _Quick = None, *, hit: int = 1) -> Step:
    return _row(scene, probe, victim, place=Place.WORKER, hit=hit)


def _job(scene: Scene, probe: str, victim: _Quick = None, *, hit: int = 1) -> Step:
    return _row(scene, probe, victim, place=Place.JOB, hit=hit)


# Read: where, the step, and whom `make test` ends at it (of a transaction: before, inside, after).
STEPS: Final[Sequence[Step]] = (
    # -- an upload becomes a file ------------------------------------------------------------
    _row(Scene.BATCH, "blob.written", S, done=False),
    _row(Scene.BATCH, "blob.synced", B, done=False),
    _row(Scene.BATCH, "blob.renamed", S, done=False),
    _row(Scene.BATCH, "blob.durable", done=False),
    *_transaction(Scene.BATCH, "file.create", None, S, None),
    # -- a batch is created, checked, planned, started ---------------------------------------
    *_transaction(Scene.BATCH, "batch.create", None, S, S),
    _job(Scene.BATCH, "plan.synced", S),
    _row(Scene.BATCH, "validation.done", S),
    _row(Scene.BATCH, "blob.renamed", hit=2),  # the plan; the first one was the upload
    _row(Scene.BATCH, "blob.durable", S, hit=2),
    *_transaction(Scene.BATCH, "batch.start", None, S, None),
    *_transaction(Scene.REFUSE, "refuse", None, None, S),
    _job(Scene.SKIP, "skipped.synced", S),
    _row(Scene.SKIP, "blob.renamed", hit=3),  # upload, plan, skipped lines
    _row(Scene.SKIP, "blob.durable", hit=3),
    *_transaction(Scene.SKIP, "batch.start", None, None, S),
    # -- a shard is given to a worker, a line is sent, its answer comes ----------------------
    *_transaction(Scene.BATCH, "shard.claim", None, None, S),
    _row(Scene.BATCH, "shard.opened", W),
    _work(Scene.BATCH, "worker.dispatching", W),
    _work(Scene.BATCH, "worker.answered", B),
    # -- its result becomes durable and is offered, accepted, counted ------------------------
    _work(Scene.BATCH, "segment.creating", S),
    _work(Scene.BATCH, "segment.created", B),
    _work(Scene.BATCH, "segment.writing", W),
    _work(Scene.BATCH, "segment.written", W),
    _work(Scene.BATCH, "segment.synced", B),
    _work(Scene.BATCH, "commit.sending", W),
    _work(Scene.BATCH, "commit.sent", S),
    _row(Scene.BATCH, "commit.received", W, hit=2),
    *_transaction(Scene.BATCH, "commit", S, B, S, hit=2),
    _row(Scene.BATCH, "commit.answered", W, hit=2),
    _work(Scene.BATCH, "shard.releasing", W),
    _work(Scene.BATCH, "shard.released", B),
    # -- a batch ends ------------------------------------------------------------------------
    _row(Scene.BATCH, "ranges.checked", S),
    *_transaction(Scene.BATCH, "all_lines_finished", None, None, S),
    _row(Scene.BATCH, "finalize.starting", S),
    *_transaction(Scene.BATCH, "finalize", None, S, S),
    # -- a worker dies -----------------------------------------------------------------------
    *_transaction(Scene.LOSS, "shards.fence", None, S, None),
    *_transaction(Scene.LOSS, "references.release", None, None, S, hit=2),  # the first: at start
    # -- a cancel ----------------------------------------------------------------------------
    *_transaction(Scene.CANCEL, "cancel", S, S, S),
    _row(Scene.CANCEL, "gate.closing", W),
    _row(Scene.CANCEL, "gate.asking", S),
    _work(Scene.CANCEL, "gate.closed", W),
    _work(Scene.CANCEL, "gate.acknowledging", W),
    _work(Scene.CANCEL, "gate.acknowledged", B),
    _row(Scene.CANCEL, "gate.asked", B),
    _row(Scene.CANCEL, "gate.heard", S),
    _row(Scene.FENCE, "workers.fenced", S),
    *_transaction(Scene.CANCEL, "receipt.put", None, None, S),
    _row(Scene.CANCEL, "finalize.starting"),
    _job(Scene.CANCEL, "never_run.synced", S),
    _row(Scene.CANCEL, "never_run.written", S),
    _row(Scene.CANCEL, "blob.renamed", hit=3),  # upload, plan, never-run lines
    _row(Scene.CANCEL, "blob.durable", hit=3),
    *_transaction(Scene.CANCEL, "finalize", None, S, S),
    # -- the window closes -------------------------------------------------------------------
    *_transaction(Scene.EXPIRE, "window_closed", None, None, S),
    _row(Scene.EXPIRE, "gate.heard"),
    _row(Scene.EXPIRE, "never_run.written"),
    *_transaction(Scene.EXPIRE, "finalize", None, None, None),
    # -- the input is lost -------------------------------------------------------------------
    *_transaction(Scene.LOST, "input_lost", None, None, S),
    *_transaction(Scene.LOST, "finalize", None, None, None),
    # -- bytes go ----------------------------------------------------------------------------
    *_transaction(Scene.DELETE, "file.delete", None, None, S),
    *_transaction(Scene.DELETE, "files.let_go", None, S, None),
    _row(Scene.DELETE, "blobs.deleting", S),
    _row(Scene.DELETE, "blobs.deleted", S),  # bytes first: rows without bytes are swept again
    *_transaction(Scene.DELETE, "blobs.forget", None, S, None),
    _work(Scene.DELETE, "segment.closed", W),
    *_transaction(Scene.DELETE, "references.release", None, None, S, hit=2),
    *_transaction(Scene.RETENTION, "files.expire", None, None, S),
    *_transaction(Scene.RETENTION, "uploads.expire", None, None, S),
    *_transaction(Scene.BATCH, "idempotency.drop", None, None, S, hit=2),
    # -- an upload in parts; its blobs are the three parts and then the copy -----------------
    *_transaction(Scene.PARTS, "upload.create", None, None, S),
    _row(Scene.PARTS, "blob.written", hit=2, done=False),
    _row(Scene.PARTS, "blob.renamed", hit=2, done=False),
    _row(Scene.PARTS, "blob.durable", S, hit=2, done=False),
    *_transaction(Scene.PARTS, "part.add", None, None, S, hit=2),
    _row(Scene.PARTS, "blob.written", hit=4, done=False),
    _row(Scene.PARTS, "blob.synced", hit=4, done=False),
    _row(Scene.PARTS, "blob.renamed", hit=4, done=False),
    _row(Scene.PARTS, "blob.durable", S, hit=4, done=False),
    *_transaction(Scene.PARTS, "upload.complete", None, S, S),
    *_transaction(Scene.PARTS_CANCEL, "upload.cancel", None, None, S),
    # -- keys --------------------------------------------------------------------------------
    *_transaction(Scene.KEYS, "key.create", None, None, S),
    *_transaction(Scene.KEYS, "key.revoke", None, None, S),
    # -- a start, and the second death in the recovery of the first --------------------------
    _row(Scene.FIRST, "schema.before"),
    _row(Scene.FIRST, "schema.inside", S),
    _row(Scene.FIRST, "schema.after"),
    _row(Scene.AGAIN, "start.locked", S),
    _row(Scene.AGAIN, "start.alone", S),
    _row(Scene.AGAIN, "start.opened", S),
    _row(Scene.AGAIN, "start.sweeping"),
    *_transaction(Scene.AGAIN, "references.release", None, None, S),
    _row(Scene.AGAIN, "orphans.deleting", S),
    _row(Scene.AGAIN, "orphans.deleted", S),
    _row(Scene.AGAIN, "start.recovered", S),
    _row(Scene.AGAIN, "start.listening", S),
    _row(Scene.AGAIN, "start.resumed", S),
    *_transaction(Scene.AGAIN, "shard.claim", None, S, None),
    _work(Scene.AGAIN, "worker.dispatching", B),
    _row(Scene.AGAIN_CANCEL, "start.sweeping", S),  # over the scratch file of the lines
    _row(Scene.AGAIN_CANCEL, "start.resumed"),
    _row(Scene.AGAIN_CANCEL, "finalize.starting"),
    _job(Scene.AGAIN_CANCEL, "never_run.synced"),
    _row(Scene.AGAIN_CANCEL, "never_run.written", S),
    _row(Scene.AGAIN_CANCEL, "blob.durable"),
    *_transaction(Scene.AGAIN_CANCEL, "finalize", None, S, S),
    *_transaction(Scene.AGAIN_EXPIRE, "window_closed", None, None, S),
    *_transaction(Scene.AGAIN_EXPIRE, "finalize", None, None, None),
)

# What `make test` goes through: of each scene the first step, and the middle one.
SAMPLED: Final[Sequence[Step]] = [
    step
    for scene in Scene
    for of_scene in [[step for step in STEPS if step.scene is scene]]
    for step in {0: of_scene[0], len(of_scene) // 2: of_scene[len(of_scene) // 2]}.values()
]

# Steps that another test ends the program at, by the step's name or a transaction's.
ELSEWHERE: Final[Mapping[str, str]] = {
    "run.written": "tests/e2e/test_run_command.py",
    "run.output.written": "tests/e2e/test_run_command.py",
    "run.removing": "tests/e2e/test_run_command.py",
    "unsettle.before": "tests/fault/test_damage.py",
    "unsettle.inside": "tests/fault/test_damage.py",
    "unsettle.after": "tests/fault/test_damage.py",
    "abort.starting": "tests/fault/test_cancel_faults.py",
    # One test goes through all of these, `backup.{step}=kill`.
    "backup.began": "tests/fault/test_backup.py",
    "backup.rows": "tests/fault/test_backup.py",
    "backup.blob": "tests/fault/test_backup.py",
    "backup.bytes": "tests/fault/test_backup.py",
    "backup.finished": "tests/fault/test_backup.py",
    "backup.named": "tests/fault/test_backup.py",
}

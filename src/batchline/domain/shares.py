"""Who is given the next shard: projects by weight, their batches in turns, dangers first.

One book of everything that waits. It knows no shards, only that a batch has some of a model that
wait; who hands out shards tells it so, and what became of those that it chose. No clock and no I/O.

Two levels of fair queueing (`fairness.py`). Projects compete at a backend, each backend by itself,
by weight. The batches of a project that want the same model take equal turns. Work is counted in
tokens, guessed from what came before while a shard runs and corrected when its results tell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from batchline.domain.fairness import FairQueue, Tags
from batchline.domain.ids import ProjectId
from batchline.domain.review import Review
from batchline.domain.wanting import Member, ModelWork, Wanting

URGENT_SHARE: Final = 0.2  # of a model's work: what projects in danger get beyond their shares
PER_PROJECT: Final = 8  # batches of one project that are open at one place, where others wait
READY: Final = 2  # shards that a project has open at one place: one runs dry, one is ready,
CROWDED: Final = 32  # but where so many are open it has one, so that there is a place for others

RESTING: Final = 256  # models that nobody runs of which is still known what a line takes

_ODDEST: Final = 16.0  # a line counts as at most so many lines, or as one of so many


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """By what right a shard runs, for whoever runs several side by side.

    Lines of different projects go in the proportion of their `weight`, and where one is `urgent`
    (not 0) it gets so much of everything on top. Batches of one project go in turns, but one that
    is `first` gets FIRST_PART of them.
    """

    project: str = ""
    weight: float = 1.0
    urgent: float = 0.0
    first: bool = False


@dataclass(slots=True, eq=False)
class Charge:
    """What a shard that was given out is charged for; brought to the truth as results come."""

    member: Member
    model: str
    backend: str
    place: str
    weight: float
    part: float
    each: float  # what a line was taken for
    lines: int  # not settled yet
    done: int  # absolute, as commits tell
    failed: int
    tokens: int


@dataclass(slots=True, eq=False)
class _Backend:
    """The competition for one backend: one tag for each project, one queue for each model.

    `places` are the workers at which a project has shards for it.
    """

    tags: Tags[ProjectId] = field(default_factory=Tags)
    places: dict[ProjectId, Counter[str]] = field(default_factory=dict)
    queues: dict[str, FairQueue[ProjectId]] = field(default_factory=dict)


class Shares:
    """The book. Owned by the event loop of the control process."""

    def __init__(self, *, urgent_share: float = URGENT_SHARE) -> None:
        self._urgent_share = urgent_share
        self._members: dict[int, Member] = {}
        self._weights: dict[ProjectId, float] = {}
        self._ranks: dict[ProjectId, int] = {}
        self._batches_of: dict[ProjectId, int] = {}
        self._models: dict[str, ModelWork] = {}  # those that some batch waits for or runs
        self._resting: dict[str, ModelWork] = {}  # the last others, the latest at the end
        self._backends: dict[str, _Backend] = {}
        self._review = Review(self._models, self._weights, urgent_share=urgent_share)

    # -- batches come and go ---------------------------------------------------------------

    def add(self, member: Member, *, weight: float) -> None:
        """A batch begins to run. Its project has this weight from now on."""
        project = member.project
        self._members[member.sequence] = member
        self._weights[project] = weight
        self._ranks.setdefault(project, len(self._ranks))
        self._batches_of[project] = self._batches_of.get(project, 0) + 1

    def remove(self, sequence: int) -> None:
        """The batch is over, whatever of it still waits."""
        member = self._members.pop(sequence, None)
        if member is None:
            return
        for model in list(member.models):
            self.rests(sequence, model, member=member)
            self._forget(member, model)
        project = member.project
        self._batches_of[project] -= 1
        if not self._batches_of[project]:
            del self._batches_of[project]
            for backend in self._backends.values():
                backend.tags.forget(project)

    def _forget(self, member: Member, model: str) -> None:
        of_model = self._models[model]
        wanting = of_model.projects[member.project]
        wanting.members.pop(member.sequence, None)
        wanting.queue.tags.of.pop(member.sequence, None)
        if not wanting.members:
            del of_model.projects[member.project]
            self._let_rest(model)

    def _let_rest(self, model: str) -> None:
        """Have a model that nobody runs cost nothing: callers name what they like."""
        of_model = self._models[model]
        if of_model.projects or of_model.held:
            return
        of_model.work, of_model.looked_at = 0.0, -math.inf  # its rest is no slowness
        self._resting[model] = self._models.pop(model)
        if len(self._resting) > RESTING:
            del self._resting[next(iter(self._resting))]
        for backend in self._backends.values():
            backend.queues.pop(model, None)

    def waits(self, sequence: int, model: str) -> None:
        """The batch has a shard of `model` to give out."""
        member = self._members.get(sequence)
        if member is None:
            return
        member.models.add(model)
        of_model = self._models.get(model)
        if of_model is None:
            of_model = self._resting.pop(model) if model in self._resting else ModelWork()
            self._models[model] = of_model
        wanting = of_model.projects.setdefault(member.project, Wanting())
        wanting.members[sequence] = member
        of_model.waiting += not len(wanting.queue)
        wanting.queue.enter(sequence, (member.expires_at, sequence))
        for backend in self._backends.values():
            if model in backend.queues:
                backend.queues[model].enter(member.project, self._ranks[member.project])

    def rests(self, sequence: int, model: str, *, member: Member | None = None) -> None:
        """The batch has no shard of `model` to give out any more."""
        member = member or self._members.get(sequence)
        if member is None or model not in member.models:
            return
        of_model = self._models[model]
        wanting = of_model.projects[member.project]
        if sequence not in wanting.queue:
            return
        wanting.queue.leave(sequence)
        if not len(wanting.queue):
            of_model.waiting -= 1
            for backend in self._backends.values():
                if model in backend.queues:
                    backend.queues[model].leave(member.project)

    def waiting_models(self) -> list[str]:
        """The models of which something waits."""
        return [model for model, of_model in self._models.items() if of_model.waiting]

    # -- who is next -----------------------------------------------------------------------

    def choose(
        self,
        backend: str,
        models: Iterable[str],
        *,
        now: float,
        beside: Mapping[ProjectId, Collection[int]] | None = None,
    ) -> tuple[int, str] | None:
        """Whose shard is next, and of which model, where one of `models` is served by `backend`.

        With `beside`, the shards that are open there by project (the sequence of the batch of
        each), only what belongs beside them: of a project with few shards there any, of one with
        more a batch that has none there.
        """
        self._review.go_on(now)
        best: tuple[float, int, ProjectId, str] | None = None
        for model in models:
            found = self._next_project(backend, model, beside)
            if found is not None and (best is None or found < best[:3]):
                best = (*found, model)
        if best is None:
            return None
        _, _, project, model = best
        sequence = self._next_batch(project, model, beside)
        return None if sequence is None else (sequence, model)

    def _next_project(
        self, backend: str, model: str, beside: Mapping[ProjectId, Collection[int]] | None
    ) -> tuple[float, int, ProjectId] | None:
        queue = self._queue(backend, model)
        if beside is None:
            return queue.first()
        return queue.first(lambda project: self._next_batch(project, model, beside) is not None)

    def _next_batch(
        self, project: ProjectId, model: str, beside: Mapping[ProjectId, Collection[int]] | None
    ) -> int | None:
        queue = self._models[model].projects[project].queue
        there: Collection[int] = ()
        ready = READY
        if beside is not None:
            there = beside.get(project, ())
            if there and sum(map(len, beside.values())) >= CROWDED:
                ready = 1
        if len(there) < ready:
            found = queue.first()
        elif len(there) < PER_PROJECT:
            found = queue.first(lambda sequence: sequence not in there)
        else:
            found = None
        return None if found is None else found[2]

    def _queue(self, backend: str, model: str) -> FairQueue[ProjectId]:
        competition = self._backends.setdefault(backend, _Backend())
        queue = competition.queues.get(model)
        if queue is None:
            queue = competition.queues[model] = FairQueue(competition.tags)
            of_model = self._models.get(model)
            for project, wanting in of_model.projects.items() if of_model else ():
                if len(wanting.queue):
                    queue.enter(project, self._ranks[project])
        return queue

    # -- what became of it -----------------------------------------------------------------

    def turn(self, sequence: int, model: str, *, backend: str, place: str) -> Turn:
        """The right by which a shard of the batch would run now at `place`, a worker."""
        member = self._members[sequence]
        of_model = self._models[model]
        wanting = of_model.projects[member.project]
        # Lines share by tokens: twice as long ones go half as often. Against the mean of the
        # model, so that of models whose tokens cannot be compared lines count alike.
        odd = of_model.each_of(member) / of_model.each
        odd = min(_ODDEST, max(1 / _ODDEST, odd))
        # A project that is at several workers has a part of its weight at each, or it would have
        # more of all of them than one that is small enough for one.
        places = {place, *self._backends[backend].places.get(member.project, ())}
        return Turn(
            project=member.project,
            weight=self._weights[member.project] / odd / len(places),
            urgent=self._urgent_share if wanting.raised else 0.0,
            first=sequence == wanting.danger.first,
        )

    def take(
        self,
        sequence: int,
        model: str,
        *,
        backend: str,
        place: str,
        done: int,
        failed: int,
        tokens: int,
        lines: int,
    ) -> Charge:
        """A shard with `lines` to run was given to the worker `place`, for `backend`: its project
        and its batch pay.

        `done` (completed), `failed` and `tokens` are what the shard has from earlier.
        """
        member = self._members[sequence]
        of_model = self._models[model]
        wanting = of_model.projects[member.project]
        charge = Charge(
            member=member,
            model=model,
            backend=backend,
            place=place,
            part=wanting.part(sequence),
            weight=self._weight(member.project, wanting),
            each=of_model.each_of(member),
            lines=lines,
            done=done,
            failed=failed,
            tokens=tokens,
        )
        of_model.held += 1
        places = self._backends[backend].places.setdefault(member.project, Counter())
        places[place] += 1
        self._backends[backend].tags.serve(member.project)
        wanting.queue.tags.serve(sequence)
        self._pay(charge, lines * charge.each)
        return charge

    def settled(self, charge: Charge, *, done: int, failed: int, tokens: int) -> None:
        """The shard's counts are these now, absolute: what was guessed of them becomes known."""
        completed, refused = done - charge.done, failed - charge.failed
        told = tokens - charge.tokens
        charge.done, charge.failed, charge.tokens = done, failed, tokens
        of_model = self._models[charge.model]
        if told > 0:
            for known in (charge.member, of_model):
                known.tokens += told
                known.told += completed
        # A line that failed has cost something, and nobody told what.
        work = (told if told > 0 else completed * charge.each) + refused
        lines = completed + refused
        charge.lines -= lines
        charge.member.lines -= lines
        of_model.work += work
        self._pay(charge, work - lines * charge.each)

    def returned(self, charge: Charge) -> None:
        """The shard came back: what it did not run is not paid for."""
        self._models[charge.model].held -= 1
        of_backend, project = self._backends[charge.backend], charge.member.project
        places = of_backend.places[project]
        places[charge.place] -= 1
        if not places[charge.place]:
            del places[charge.place]
        if not places:
            del of_backend.places[project]
        self._pay(charge, -charge.lines * charge.each)
        charge.lines = 0
        self._let_rest(charge.model)

    def _pay(self, charge: Charge, work: float) -> None:
        if not work:
            return
        member, model = charge.member, charge.model
        competition = self._backends[charge.backend]
        competition.tags.charge(member.project, work / charge.weight)
        for queue in competition.queues.values():
            queue.moved(member.project)
        wanting = self._models[model].projects.get(member.project)
        if wanting is not None and member.sequence in wanting.members:
            wanting.queue.tags.charge(member.sequence, work / charge.part)
            wanting.queue.moved(member.sequence)

    def _weight(self, project: ProjectId, wanting: Wanting) -> float:
        return wanting.raised or self._weights[project]

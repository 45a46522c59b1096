"""Pages of a proxy: what the look before a trial makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest

from batchline.domain.attempts import Outcome
from batchline.domain.errors import NotSent, SentUnanswered, UpstreamError
from batchline.executor.lane import Lane
from batchline.executor.line import Line, Trial
from batchline.executor.proxies import Proxies
from batchline.executor.transport.contract import Answer
from batchline.executor.verdict import Verdict
from tests.unit.test_failover import ALIVE, AWAY, PAGE, Looked, turns
from tests.unit.test_lane import shard_run

FULL = Verdict(Outcome.SHED, "status 503", b"result\n", answered=True, page=503)
SILENT = SentUnanswered("no answer", reason="timeout")


@dataclass(slots=True)
class Desk:
    backend: Looked = field(default_factory=Looked)
    failed: list[Exception] = field(default_factory=list)
    tried: int = 0
    lane: Lane = field(init=False)
    line: Line = field(init=False)
    proxies: Proxies = field(init=False)

    def __post_init__(self) -> None:
        self.lane = Lane("a", self.backend)
        line = shard_run(1).take()
        assert line is not None
        self.line = line
        self.proxies = Proxies(fail=self.failed.append)

    def judged(self, found: Verdict, *, trial: bool) -> Verdict:
        self.line.trial = Trial.BACKEND if trial else None
        return self.proxies.judged(self.lane, self.line, found)

    def _try(self) -> None:
        self.tried += 1

    async def look(self, answer: Answer | UpstreamError) -> None:
        """A trial is due: the look that goes before it finds `answer`."""
        tried = self.tried
        assert self.proxies.looks_first(self.lane, self._try)
        await turns()
        assert self.tried == tried
        await self.answer(answer)
        assert self.tried == tried + 1

    async def answer(self, answer: Answer | UpstreamError) -> None:
        self.backend.answers.put_nowait(answer)
        await turns()
        assert self.backend.answers.empty()


async def test_nothing_is_looked_at_before_a_page_came() -> None:
    desk = Desk()
    assert not desk.proxies.looks_first(desk.lane, desk._try)
    assert desk.judged(PAGE, trial=True) is PAGE  # nobody looked before it: in doubt, as ever
    assert desk.proxies.looks_first(desk.lane, desk._try)
    desk.proxies.close()


@pytest.mark.parametrize("found", [PAGE, FULL])
async def test_a_page_for_a_trial_after_a_page_for_the_look_is_a_refused_connection(
    found: Verdict,
) -> None:
    desk = Desk()
    desk.judged(PAGE, trial=False)
    for _ in range(10):  # as often as may be
        await desk.look(AWAY)
        judged = desk.judged(found, trial=True)
        assert (judged.outcome, judged.cut_off) == (Outcome.NOT_SENT, False)
        assert judged.reason == f"a proxy answers {found.page} for it"
    assert desk.judged(found, trial=False) is found  # of those that were in flight before


async def test_a_page_for_a_trial_after_an_answer_to_the_look_is_in_doubt() -> None:
    desk = Desk()
    desk.judged(FULL, trial=False)
    await desk.look(ALIVE)
    assert desk.judged(PAGE, trial=True) is PAGE
    in_doubt = desk.judged(FULL, trial=True)
    assert in_doubt == msgspec.structs.replace(FULL, outcome=Outcome.BROKEN, cut_off=True)
    assert desk.judged(FULL, trial=False) is FULL


@pytest.mark.parametrize("trouble", [NotSent("refused"), SILENT])
async def test_a_look_that_says_neither_changes_nothing(trouble: UpstreamError) -> None:
    desk = Desk()
    desk.judged(PAGE, trial=False)
    await desk.look(AWAY)
    await desk.look(trouble)
    assert desk.judged(PAGE, trial=True) is PAGE
    assert desk.judged(FULL, trial=True) is FULL


async def test_looks_that_are_given_pages_while_lines_are_answered_are_believed_no_more() -> None:
    """Else a line that ends such a backend each time would be free for ever."""
    desk = Desk()
    desk.judged(PAGE, trial=False)
    await desk.look(AWAY)
    desk.proxies.worked(desk.lane)
    await desk.answer(AWAY)
    await desk.look(AWAY)
    assert desk.judged(PAGE, trial=True) is PAGE
    await desk.look(ALIVE)  # until one is answered
    await desk.look(AWAY)
    assert desk.judged(PAGE, trial=True).outcome is Outcome.NOT_SENT


async def test_a_backend_that_comes_up_between_look_and_trial_misleads_nobody() -> None:
    desk = Desk()
    desk.judged(PAGE, trial=False)
    await desk.look(AWAY)
    desk.proxies.worked(desk.lane)
    await desk.answer(ALIVE)
    await desk.look(AWAY)
    assert desk.judged(PAGE, trial=True).outcome is Outcome.NOT_SENT


async def test_a_fault_of_ours_in_a_look_is_told() -> None:
    desk = Desk()
    desk.judged(PAGE, trial=False)
    desk.backend.answers = None  # type: ignore[assignment]  # so that the look raises
    desk.proxies.looks_first(desk.lane, desk._try)
    await turns()
    assert ([type(one) for one in desk.failed], desk.tried) == ([AttributeError], 0)

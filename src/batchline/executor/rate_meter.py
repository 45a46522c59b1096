"""What one worker may still send to one backend that counts, and what its answers say of that.

The worker's side of `rate_desk.py`. A lane asks the meter for each line before it goes; what was
granted is used up first, then more is asked for. No socket and no clock: messages go out through
`send`, instants come in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from batchline.domain import bitmap
from batchline.domain.attempts import Outcome
from batchline.domain.lines import RequestLine
from batchline.domain.model import Usage
from batchline.executor import messages as m
from batchline.executor.estimates import Estimator, total_of
from batchline.executor.line import Gate, Line
from batchline.executor.rate_headers import told_in
from batchline.executor.rates import MINUTE_S, Kind, Told, Want

REPORT_S: Final = 0.1  # how often what answers said is passed on
MOST_ASKED: Final = 64  # requests at once; what is granted of it is half a second's worth at most
# A line that was sent back so often although all of the allowance was there, and others were let
# through since, is larger than the allowance: it gets the backend's answer.
HOPELESS: Final = 3
_ROUNDING: Final = 1e-6
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 60.0
_FORGET_S: Final = 30.0  # after a refusal, and again while there is something to remember


@dataclass(slots=True)
class _Cost:
    """What is known of a line on its way: its guess of tokens and what it was counted for."""

    guess: float = 0.0
    wanted: float | None = None  # what it is to be counted for next
    tokens: float = 0.0
    sent_at: float = 0.0
    refusals: int = 0
    at_full: int = 0  # of these, those with all of the allowance there
    answered: int = 0  # by the backend in all, when it was last refused


class RateMeter:
    """`read` gives the request of a line (None: unreadable), `later` calls back after seconds."""

    def __init__(
        self,
        backend: str,
        *,
        send: Callable[[m.ToControl], None],
        read: Callable[[Line], RequestLine | None],
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._backend = backend
        self._send = send
        self._read = read
        self._clock = clock
        self._later = later
        self._estimator = Estimator()
        self._counts_requests = False
        self._most_tokens: float | None = None
        self._requests = 0
        self._tokens = 0.0
        self._asked = False
        self._costs: dict[Line, _Cost] = {}
        self._head: Line | None = None  # what was asked for lately is for this one
        self._head_cost = _Cost()
        self._over = 0.0  # tokens of answers beyond their estimates, not reported yet
        self._told: Mapping[Kind, Told] = {}
        self._told_of = 0.0  # when the request of `_told` went out
        self._reporting = False
        self._answered = 0
        self._forgetting = False

    # -- what the control process says -----------------------------------------------------

    def set_rates(self, order: m.SetRates) -> None:
        self._counts_requests, self._most_tokens = order.requests, order.tokens
        self._requests, self._tokens = 0, 0.0
        self._asked = False
        self._head = None

    def granted(self, grant: m.Grant) -> None:
        self._requests += grant.requests
        self._tokens += grant.tokens
        self._asked = False

    # -- lines -----------------------------------------------------------------------------

    @property
    def counts(self) -> bool:
        """Whether anything is counted, so that a refusal for the rate is the rate's."""
        return self._counts_requests or self._most_tokens is not None

    @property
    def remembered(self) -> int:
        """Lines on their way, or refused and not done with."""
        return len(self._costs)

    @property
    def waits(self) -> bool:
        """More was asked for and has not come: no line needs to be looked at."""
        return self._asked

    def admits(self, line: Line, *, room: int) -> bool:
        """Whether `line` may go now; it is then paid for. Else more is asked for.

        `room` lines could be sent now, were it not for the rate.
        """
        cost = self._costs.get(line) or (self._head_cost if line is self._head else _Cost())
        tokens = cost.wanted
        if tokens is None:
            tokens = cost.wanted = self._tokens_of(line, cost)
        enough = self._tokens + _ROUNDING >= tokens
        if enough and (self._requests >= 1 or not self._counts_requests):
            self._requests -= self._counts_requests
            self._tokens -= tokens
            cost.tokens, cost.sent_at = tokens, self._clock()
            self._costs[line] = cost
            self._head = None
            return True
        # What is asked for is what it will go for: a guess that has grown meanwhile would wait
        # again, with all of this in its hands.
        self._head, self._head_cost = line, cost
        self._asked = True
        lines = max(1, min(room, MOST_ASKED))
        first = max(0.0, tokens - self._tokens)
        self._send(
            m.AskRates(
                self._backend,
                Want(
                    max(0, lines - self._requests) if self._counts_requests else 0,
                    first + tokens * (lines - 1),
                    first,
                ),
            )
        )
        return False

    def _tokens_of(self, line: Line, cost: _Cost) -> float:
        most = self._most_tokens
        if most is None:
            return 0.0
        request = self._read(line)
        if request is None:
            return 0.0  # nothing will be sent
        cost.guess = self._estimator.guess(request.body, line.run.work.endpoint)
        doubled = 2.0 ** min(cost.refusals, 32)
        return min(cost.guess * self._estimator.scale * doubled, most)

    # -- answers ---------------------------------------------------------------------------

    def heard(self, line: Line, headers: Mapping[str, str]) -> None:
        """The headers of an answer; the newest request's are passed on."""
        told = told_in(headers)
        cost = self._costs.get(line)
        sent_at = self._clock() if cost is None else cost.sent_at
        if told and (not self._told or sent_at >= self._told_of):
            self._told, self._told_of = told, sent_at
            self._report_soon()

    def ended(self, line: Line, outcome: Outcome, usage: Usage | None) -> None:
        """The attempt of `line` was answered; an estimate is corrected by what was used."""
        if outcome in (Outcome.ANSWERED, Outcome.REFUSED):
            self._answered += 1
        cost = self._costs.get(line)
        if cost is None or usage is None or self._most_tokens is None:
            return
        if outcome is Outcome.ANSWERED and (total := total_of(usage)):
            self._over += total - cost.tokens
            self._estimator.learn(cost.guess, usage)
            self._report_soon()

    def refused(self, line: Line, retry_after_s: float | None, roll: float) -> float | None:
        """`line` was sent back for its rate: seconds that it is left alone, None for ever.

        Others may go meanwhile, when the control process grants it. No attempt is used.
        """
        if not self._forgetting:
            self._forgetting = True
            self._later(_FORGET_S, self._forget_gone)
        cost = self._costs.setdefault(line, _Cost())
        asked_s = retry_after_s or 0.0
        # What is allowed of a minute is whole again after one: this is a limit of an hour or a
        # day, and says nothing of the line, however much of the minute that takes.
        of_the_line = asked_s <= MINUTE_S
        cost.refusals += of_the_line
        cost.wanted = None
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(cost.refusals, 16))
        wait_s *= 0.5 + roll / 2
        self._over -= cost.tokens  # no service counts the tokens of what it sends back
        most = self._most_tokens
        if of_the_line and most is not None and cost.tokens >= most:
            # This says something of the line, and of the backend only for this line.
            cost.at_full += self._answered > cost.answered
            wait_s = max(wait_s, asked_s)
            self._report()
        else:
            self._requests, self._tokens = 0, 0.0
            self._report(refused=True, retry_after_s=retry_after_s)
        cost.answered = self._answered
        if cost.at_full >= HOPELESS:
            del self._costs[line]
            return None
        return wait_s

    def over(self, line: Line, *, written: bool) -> None:
        """The attempt is over, however it ended; what was never sent is given back."""
        cost = self._costs.get(line)
        if cost is None:
            return
        if not written:
            self._requests += self._counts_requests
            self._tokens += cost.tokens
        if not cost.refusals or (line not in line.run.waiting and line not in line.run.in_flight):
            del self._costs[line]

    def _forget_gone(self) -> None:
        """Refused lines whose gate closed, or that another backend answered, do not come back."""
        for line in list(self._costs):
            run = line.run
            is_over = run.gate is not Gate.OPEN or bitmap.is_marked(run.settled, line.index)
            if is_over and line not in run.in_flight:
                del self._costs[line]
        self._forgetting = bool(self._costs)
        if self._forgetting:
            self._later(_FORGET_S, self._forget_gone)

    # -- reports ---------------------------------------------------------------------------

    def _report_soon(self) -> None:
        if not self._reporting:
            self._reporting = True
            self._later(REPORT_S, self._report_now)

    def _report_now(self) -> None:
        self._reporting = False
        if self._over or self._told:
            self._report()

    def _report(self, *, refused: bool = False, retry_after_s: float | None = None) -> None:
        told, over = self._told, self._over
        self._told, self._over = {}, 0.0
        self._send(
            m.RatesHeard(
                self._backend,
                tokens=over,
                requests_told=told.get(Kind.REQUESTS),
                tokens_told=told.get(Kind.TOKENS),
                age_s=max(0.0, self._clock() - self._told_of) if told else 0.0,
                refused=refused,
                retry_after_s=retry_after_s,
            )
        )

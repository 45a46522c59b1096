"""What workers are told of models that a backend does not have now, message by message."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from batchline.domain.attempts import TRIAL_PATIENCE_S, Outcome
from batchline.domain.waiting import of_model
from batchline.executor import messages as m
from batchline.executor.admission import Admission
from batchline.executor.circuit import FIRST_WAIT_S, LONGEST_WAIT_S
from batchline.executor.contract import BackendSettings

ONE = "one"
TWO = "two"
GONE = m.SetAway(ONE, ["m"])
ALL_THERE = m.SetAway(ONE, [])


@dataclass(slots=True)
class Desk:
    """An admission for two backends, with a clock that the test moves; `a` and `b` have lines of
    the models in `has` for the first."""

    now: float = 1_000.0
    told: list[tuple[str, m.ToWorker]] = field(default_factory=list)
    has: set[tuple[str, str]] = field(default_factory=lambda: {("a", "m"), ("b", "m")})
    changes: int = 0
    patience_s: float = TRIAL_PATIENCE_S
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(
            [BackendSettings(name=name, base_url=f"http://{name}/v1") for name in (ONE, TWO)],
            tell=lambda worker, message: self.told.append((worker, message)),
            clock=lambda: self.now,
            holds=lambda worker, backend, model: backend == ONE and (worker, model) in self.has,
            on_models=self.changed,
            trial_patience_s=self.patience_s,
        )
        for worker in "ab":
            self.admission.set_wanting(worker, [ONE])
        self.told.clear()

    def changed(self) -> None:
        self.changes += 1

    def news(self) -> list[tuple[str, m.ToWorker]]:
        """What was told since the last call, by worker."""
        told, self.told = self.told, []
        return sorted(told, key=lambda one: one[0])

    def missed(
        self, worker: str, *, model: str = "m", asked_s: float | None = None, trial: bool = False
    ) -> None:
        message = m.ModelAway(ONE, model, "status 404", asked_s, trial=trial)
        self.admission.model_away(worker, message)

    def trial(self) -> str | None:
        """Which worker a tick asks to try the model."""
        self.admission.tick()
        asked = [worker for worker, message in self.news() if message == m.TryModel(ONE, "m")]
        assert len(asked) <= 1
        return asked[0] if asked else None

    def due(self) -> str:
        """As `trial`, once it is due."""
        self.now += LONGEST_WAIT_S
        worker = self.trial()
        assert worker is not None
        return worker

    def tried(self, worker: str, *, worked: bool) -> None:
        self.admission.model_tried(worker, m.ModelTried(ONE, "m", worked=worked))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_all_who_send_there_hear_once_that_a_model_is_away_and_the_backend_admits(
    desk: Desk,
) -> None:
    desk.missed("a")
    assert desk.news() == [("a", GONE), ("b", GONE)]
    desk.missed("b")
    assert desk.news() == []
    one, two = desk.admission.standings({})
    away = of_model("m", Outcome.AWAY, "status 404")
    assert (one.gated, one.waits, one.away) == (None, None, {"m": away})
    assert one.reason == away
    assert (two.away, two.reason) == ({}, None)
    assert desk.admission.models_away(ONE) == ("m",)
    assert desk.changes == 1


def test_who_comes_later_hears_it_and_who_comes_back_hears_that_it_is_over(desk: Desk) -> None:
    desk.missed("a")
    desk.news()
    desk.admission.set_wanting("c", [ONE])
    assert ("c", GONE) in desk.news()
    desk.admission.set_wanting("c", [])
    trier = desk.due()
    desk.tried(trier, worked=True)
    assert {worker for worker, message in desk.news() if message == ALL_THERE} == {"a", "b", "c"}
    desk.admission.set_wanting("c", [ONE])
    assert not any(isinstance(message, m.SetAway) for _, message in desk.news())


def test_one_worker_tries_it_and_only_once(desk: Desk) -> None:
    desk.missed("a")
    desk.news()
    assert desk.trial() is None
    desk.now += FIRST_WAIT_S
    assert desk.trial() in {"a", "b"}
    desk.now += 1_000
    assert desk.trial() is None


def test_only_a_worker_with_lines_of_it_is_asked(desk: Desk) -> None:
    desk.has.remove(("a", "m"))
    desk.missed("b")
    desk.news()
    for _ in range(10):
        assert desk.due() == "b"
        desk.tried("b", worked=False)


def test_each_trial_that_misses_it_doubles_the_wait(desk: Desk) -> None:
    desk.missed("a")
    waits = []
    for _ in range(12):
        began = desk.now
        while (trier := desk.trial()) is None:
            desk.now += 0.01
        waits.append(desk.now - began)
        desk.missed(trier, trial=True)
    for at, wait_s in enumerate(waits):
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**at)
        assert longest / 2 - 0.02 <= wait_s <= longest + 0.02


def test_an_answer_to_the_trial_brings_it_back_everywhere(desk: Desk) -> None:
    desk.missed("a")
    desk.news()
    desk.tried(desk.due(), worked=True)
    assert desk.news() == [("a", ALL_THERE), ("b", ALL_THERE)]
    assert desk.admission.standings({})[0].away == {}
    assert desk.changes == 2


def test_the_trial_of_a_reaped_worker_goes_to_another(desk: Desk) -> None:
    desk.missed("a")
    first = desk.due()
    desk.admission.worker_gone(first)
    desk.has.discard((first, "m"))
    assert desk.due() == ({"a", "b"} - {first}).pop()


def test_the_word_of_a_trial_that_is_not_the_present_one_moves_nothing(desk: Desk) -> None:
    desk.missed("a")
    trier = desk.due()
    other = ({"a", "b"} - {trier}).pop()
    desk.missed(other, trial=True)
    desk.tried(other, worked=False)
    desk.now += LONGEST_WAIT_S
    assert desk.trial() is None  # the present one is still out
    desk.missed(trier, trial=True)
    desk.now += 2 * FIRST_WAIT_S
    assert desk.trial() is not None


def test_what_the_backend_asks_for_is_waited_for_and_shown(desk: Desk) -> None:
    desk.missed("a", asked_s=120.0)
    away = of_model("m", Outcome.AWAY, "status 404", next_try_s=120.0)
    assert desk.admission.standings({})[0].away == {"m": away}
    desk.now += 119.0
    assert desk.trial() is None
    desk.now += 1.0
    assert desk.trial() is not None


def test_a_model_that_is_listed_again_is_tried_at_once(desk: Desk) -> None:
    """An adapter that was unloaded leaves the list, and is in it again once it is loaded."""
    desk.admission.note_models(ONE, ["m", "n"])
    desk.missed("a", asked_s=3_000.0)
    desk.admission.note_models(ONE, ["m"])
    assert desk.trial() is None  # it was there all the time
    desk.admission.note_models(ONE, ["n"])
    assert desk.trial() is None
    desk.admission.note_models(ONE, ["n", "m"])
    assert desk.trial() is not None


@pytest.mark.parametrize("why", ["closed", "drained"])
def test_a_model_is_not_tried_where_the_backend_takes_no_lines(desk: Desk, why: str) -> None:
    desk.missed("a")
    if why == "closed":
        fault = m.BackendFault(ONE, Outcome.NOT_SENT, "refused", 3_000.0, trial=False)
        desk.admission.fault("a", fault)
    else:
        desk.admission.set_drained(ONE, drained=True)
    desk.now += 100.0
    assert desk.trial() is None


def test_a_model_that_nobody_has_lines_of_is_forgotten(desk: Desk) -> None:
    """Nobody could try it. If this fails, no shard of it is given to anybody ever again."""
    desk.missed("a")
    desk.news()
    desk.has.clear()
    desk.admission.tick()
    assert desk.admission.models_away(ONE) == ()
    assert desk.news() == [("a", ALL_THERE), ("b", ALL_THERE)]
    assert desk.changes == 2


def test_models_are_apart(desk: Desk) -> None:
    desk.has |= {("a", "n")}
    desk.missed("a")
    desk.missed("a", model="n")
    assert desk.news()[-1] == ("b", m.SetAway(ONE, ["m", "n"]))
    desk.has.remove(("a", "n"))
    desk.admission.tick()
    assert desk.news() == [("a", GONE), ("b", GONE)]


def test_a_trial_that_meets_a_server_error_does_not_bring_it_back_until_that_is_believed() -> None:
    desk = Desk(patience_s=3_600.0)
    desk.missed("a")
    began = desk.now
    while True:
        trier = desk.due()
        broken = m.ModelAway(ONE, "m", "status 500", None, trial=True, broken=True)
        desk.admission.model_away(trier, broken)
        (one, _) = desk.admission.standings({})
        if not one.away:
            break
        assert one.away["m"] == of_model("m", Outcome.BROKEN, "status 500")
        assert desk.news() == []
    assert 3_600.0 < desk.now - began < 3 * 3_600.0
    assert [message for _, message in desk.news()] == [ALL_THERE, ALL_THERE]

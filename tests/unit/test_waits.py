"""Why a batch does not go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchline.domain.attempts import Outcome
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.waiting import WaitCode, of_drain, of_fault, of_model, of_rate
from batchline.service.waits import Known, of_batch

GATED = {
    "a": of_fault(Outcome.NOT_SENT, "no connection: connection refused"),
    "b": of_fault(Outcome.SHED, "status 429"),
    "c": of_fault(Outcome.BLOCKED, "status 401"),
    "d": of_rate("60 requests a minute"),
    "e": of_drain(0, quiet=True),
    "f": of_fault(Outcome.BROKEN, "status 500"),
}


def codes(
    known: Known,
    *serving: list[str],
    status: BatchStatus = BatchStatus.IN_PROGRESS,
    others_first: bool = False,
) -> list[str]:
    of = {f"m{number}": backends for number, backends in enumerate(serving)}
    found = of_batch(status, known, serving=of, others_first=others_first)
    return [wait.code.value for wait in found]


def test_a_batch_whose_lines_can_go_waits_for_nothing() -> None:
    assert codes(Known(), ["a"]) == []
    assert codes(Known(gated=GATED), ["x"]) == []


@pytest.mark.parametrize(
    ("backend", "code"),
    [
        ("a", "backend_unreachable"),
        ("b", "backend_shed"),
        ("c", "backend_refused"),
        ("d", "rate_limit"),
        ("e", "backend_drained"),
        ("f", "backend_failing"),
    ],
)
def test_what_is_wrong_with_a_backend_is_a_code_and_a_sentence(backend: str, code: str) -> None:
    (wait,) = of_batch(
        BatchStatus.IN_PROGRESS, Known(gated=GATED), serving={"m": [backend]}, others_first=False
    )
    assert (wait.code.value, wait.backend) == (code, backend)
    assert wait.message == f"backend {backend} {GATED[backend].text}"


def test_all_backends_of_a_model_have_to_be_in_the_way() -> None:
    assert codes(Known(gated=GATED), ["a", "x"]) == []
    assert codes(Known(gated=GATED), ["a", "b"]) == ["backend_unreachable", "backend_shed"]


def test_of_several_models_each_may_wait() -> None:
    assert codes(Known(gated=GATED), ["x"], ["b"], ["b"]) == ["backend_shed"]


AWAY = {"x": {"m0": of_model("m0", Outcome.AWAY, "status 404")}}


def test_a_model_that_is_away_is_waited_for_by_its_lines_only() -> None:
    assert codes(Known(away=AWAY), ["x"]) == ["model_away"]
    assert codes(Known(away=AWAY), [], ["x"]) == ["model_away"]  # and is not even listed any more
    assert codes(Known(away=AWAY), ["y"], ["x"]) == []
    assert codes(Known(away=AWAY), ["x", "y"]) == []  # another one has it
    assert codes(Known(away=AWAY, gated=GATED), ["x", "a"]) == [
        "model_away",
        "backend_unreachable",
    ]


def test_a_model_that_is_away_is_named() -> None:
    (wait,) = of_batch(
        BatchStatus.IN_PROGRESS, Known(away=AWAY), serving={"m0": ["x"]}, others_first=False
    )
    assert wait.backend == "x"
    assert wait.message == "backend x does not have model m0 at the moment (status 404)"


def test_a_model_that_nobody_lists_is_named_unless_a_backend_that_had_it_is_waited_for() -> None:
    def found(known: Known, **serving: list[str]) -> list[tuple[str, str]]:
        waits = of_batch(
            BatchStatus.IN_PROGRESS, known, serving=serving, others_first=True, unlisted=["m0"]
        )
        return [(wait.code.value, wait.message) for wait in waits]

    message = "no backend lists model m0 any more; its lines go on when one does"
    assert found(Known(), m0=[], m1=["x"]) == [("model_unlisted", message)]
    assert [code for code, _ in found(Known(away=AWAY), m0=[])] == ["model_away"]
    assert [code for code, _ in found(Known(has_backends=False), m0=[])] == ["no_backend"]


@pytest.mark.parametrize(
    ("known", "code"),
    [
        (Known(paused="disk_low"), "disk_low"),
        (Known(storage_trouble="disk_full"), "storage_trouble"),
        (Known(failing="workers died at start 5 times in a row"), "no_worker"),
        (Known(ready_workers=0), "no_worker"),
        (Known(has_backends=False), "no_backend"),
    ],
)
def test_what_is_wrong_with_the_server_concerns_every_batch(known: Known, code: str) -> None:
    assert codes(known, ["a"]) == [code]


def test_a_batch_that_is_checked_needs_room_and_no_worker() -> None:
    known = Known(paused="disk_low", ready_workers=0, gated=GATED)
    assert codes(known, status=BatchStatus.VALIDATING) == ["disk_low", "validating"]


def test_turns_are_a_reason_only_where_there_is_no_other() -> None:
    assert codes(Known(), ["a"], others_first=True) == ["others_first"]
    assert codes(Known(gated=GATED), ["a"], others_first=True) == ["backend_unreachable"]


@pytest.mark.parametrize("status", sorted(set(BatchStatus) - {"validating", "in_progress"}))
def test_a_batch_that_ends_or_has_ended_waits_for_nothing(status: BatchStatus) -> None:
    known = replace(Known(gated=GATED), paused="disk_low")
    assert codes(known, ["a"], status=status, others_first=True) == []


def test_codes_are_documented() -> None:
    from tests.unit.test_docs_reference import first_cells

    assert first_cells("progress.md", "What it waits for") == [code.value for code in WaitCode]

"""Which large answers are read on, and which wait."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchline.executor.intake import Intake


@dataclass(eq=False)
class Reader:
    """Notes what it is told."""

    told: list[str] = field(default_factory=list)

    def pause(self) -> None:
        self.told.append("pause")

    def go_on(self) -> None:
        self.told.append("go on")


def of_budget(budget: int, *, held: int = 0, unwritten: int = 0) -> Intake:
    intake = Intake(budget)
    intake.held, intake.unwritten = (lambda: held), (lambda: unwritten)
    return intake


def test_answers_are_read_as_long_as_there_is_room() -> None:
    intake, first, second = of_budget(100), Reader(), Reader()
    intake.took(first, 40)
    intake.took(second, 40)
    assert first.told + second.told == []
    intake.took(second, 60)
    assert (first.told, second.told) == ([], ["pause"])


def test_what_is_held_otherwise_counts() -> None:
    intake, first, second = of_budget(100, held=70), Reader(), Reader()
    intake.took(first, 20)
    intake.took(second, 20)
    assert second.told == ["pause"]


def test_the_oldest_is_read_to_its_end_and_then_the_next() -> None:
    intake, readers = of_budget(100), [Reader() for _ in range(3)]
    for reader in readers:
        intake.took(reader, 60)
    intake.took(readers[0], 500)
    assert [one.told for one in readers] == [[], ["pause"], ["pause"]]
    intake.left(readers[0])
    assert [one.told for one in readers] == [[], ["pause", "go on"], ["pause"]]
    intake.left(readers[1])
    assert readers[2].told == ["pause", "go on"]


def test_not_even_the_oldest_is_read_while_unwritten_results_fill_the_budget() -> None:
    intake, reader = of_budget(100, held=100, unwritten=100), Reader()
    intake.took(reader, 60)
    assert reader.told == ["pause"]
    intake.freed()
    assert reader.told == ["pause"]
    intake.unwritten = lambda: 99
    intake.freed()
    assert reader.told == ["pause", "go on"]


def test_one_that_leaves_while_it_waits_can_be_used_again() -> None:
    intake, first, second = of_budget(100), Reader(), Reader()
    intake.took(first, 90)
    intake.took(second, 90)
    intake.left(second)
    assert second.told == ["pause", "go on"]
    intake.left(first)
    intake.left(first)
    intake.took(second, 90)
    assert second.told == ["pause", "go on"]


def test_without_a_budget_everything_is_read() -> None:
    intake, readers = Intake(), [Reader() for _ in range(3)]
    for reader in readers:
        intake.took(reader, 2**50)
    assert [one.told for one in readers] == [[], [], []]

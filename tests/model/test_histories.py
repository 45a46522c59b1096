"""Histories that chance finds too seldom, step by step on the same machine as the random ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.machine import BatchMachine
from tests.model.world import GRACE_S, WINDOWS, Template


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[BatchMachine]:
    """One batch of three lines in two shards, in progress. Every history comes to its end."""
    BatchMachine.template = Template(tmp_path)
    machine = BatchMachine()
    try:
        machine.begin([3])
        yield machine
    finally:
        machine.close()


def look(machine: BatchMachine) -> str:
    """The status of the first batch, which is what the reference says."""
    machine.is_as_the_reference_has_it()
    return machine.model.batches[0].status


def answer_all(machine: BatchMachine) -> None:
    while machine.unanswered():
        machine.go_on(0, [True, False], commit=True, hold=None)


@pytest.mark.parametrize("call", ["finalize", "move"])
def test_a_cancel_overtakes_the_end(machine: BatchMachine, call: str) -> None:
    machine.hold_up(machine.seen[0].id, call, after=False)
    answer_all(machine)
    assert look(machine) == ("finalizing" if call == "finalize" else "in_progress")
    machine.cancel(0)
    assert look(machine) == "cancelling"
    machine.release(0)
    assert look(machine) == "cancelled"
    machine.come_to_the_end()


@pytest.mark.parametrize("call", ["finalize", "move"])
def test_a_cancel_comes_too_late_once_the_end_is_committed(
    machine: BatchMachine, call: str
) -> None:
    machine.hold_up(machine.seen[0].id, call, after=True)
    answer_all(machine)
    assert look(machine) == ("completed" if call == "finalize" else "finalizing")
    machine.cancel(0)
    assert look(machine) == ("completed" if call == "finalize" else "cancelling")
    machine.release(0)
    assert look(machine) == ("completed" if call == "finalize" else "cancelled")
    machine.come_to_the_end()


def test_a_slow_cancel_is_answered_by_what_there_is_when_it_arrives(machine: BatchMachine) -> None:
    machine.cancel_slowly(0)
    answer_all(machine)
    assert look(machine) == "completed"
    machine.release(0)  # checks the 409
    machine.come_to_the_end()


def test_a_start_that_was_on_its_way_loses_to_a_cancel(machine: BatchMachine) -> None:
    machine.create(0, "1h", None)
    machine.hold_up(machine.seen[1].id, "start_batch", after=False)
    machine.end_job(machine.world.server.jobs.waiting[0])
    machine.cancel_number(1)
    machine.is_as_the_reference_has_it()
    assert machine.model.batches[1].status == "cancelled"
    machine.release(0)
    machine.is_as_the_reference_has_it()
    machine.come_to_the_end()


def test_a_fenced_worker_cannot_commit_to_lines_that_are_written_off(
    machine: BatchMachine,
) -> None:
    """The worker holds its shards past the grace; its commit comes while its lines are written."""
    machine.go_on(0, [True], commit=False, hold=None)
    machine.cancel(0)
    machine.pass_seconds(int(2 * GRACE_S))
    assert machine.world.server.executor.late
    assert look(machine) == "cancelling"
    machine.commit_late(0)
    assert look(machine) == "cancelling"
    machine.come_to_the_end()


def test_a_window_that_closed_while_the_server_was_down_comes_before_any_dispatch(
    machine: BatchMachine,
) -> None:
    machine.upload_and_create(2, good=True, start=True, hold=None)
    number = len(machine.seen) - 1
    machine.hold_up(machine.seen[number].id, "move", after=False)
    machine.pass_seconds(WINDOWS["10s"])
    machine.is_as_the_reference_has_it()
    assert machine.model.batches[number].status == "in_progress"
    machine.crash(0, after=False)
    machine.is_as_the_reference_has_it()
    assert machine.model.batches[number].status == "finalizing"
    assert not machine.world.server.executor.opened[machine.seen[number].id]
    machine.come_to_the_end()


def test_a_worker_that_dies_with_its_last_line_committed_ends_the_batch(
    machine: BatchMachine,
) -> None:
    machine.go_on(0, [True, True], commit=False, hold=None)
    machine.go_on(0, [True, True], commit=False, hold=None)
    assert not machine.unanswered()
    for _ in range(2):
        if machine.world.server.executor.holds(machine.seen[0].id):
            machine.lose_worker(0, [], last_commits=True)
    assert look(machine) == "completed"
    machine.come_to_the_end()


def test_a_slow_cancel_that_finds_the_batch_ending_still_cancels_it(machine: BatchMachine) -> None:
    machine.hold_up(machine.seen[0].id, "finalize", after=False)
    machine.cancel_slowly(0)
    answer_all(machine)
    assert look(machine) == "finalizing"
    machine.cancel_arrives()
    assert look(machine) == "cancelling"
    machine.come_to_the_end()


def test_a_window_that_closes_behind_a_cancel_does_not_undo_it_in_the_next_life(
    machine: BatchMachine,
) -> None:
    machine.upload_and_create(2, good=True, start=True, hold=None)
    number = len(machine.seen) - 1
    machine.cancel_number(number)
    machine.pass_seconds(WINDOWS["10s"])
    machine.crash(0, after=False)
    machine.is_as_the_reference_has_it()
    assert machine.model.batches[number].status == "cancelling"
    machine.come_to_the_end()


def test_a_window_closes_while_the_input_is_validated(machine: BatchMachine) -> None:
    machine.upload_and_create(2, good=True, start=False, hold=None)
    machine.pass_seconds(WINDOWS["10s"])
    machine.is_as_the_reference_has_it()
    assert machine.model.batches[-1].status == "expired"
    machine.come_to_the_end()


def test_a_commit_of_a_dead_worker_comes_too_late_for_a_shard_that_others_run(
    machine: BatchMachine,
) -> None:
    machine.lose_worker(0, [True], last_commits=False)
    assert machine.world.server.executor.late
    machine.commit_late(0)
    assert look(machine) == "in_progress"
    machine.come_to_the_end()


def test_one_worker_is_fenced_for_two_batches_at_once(machine: BatchMachine) -> None:
    machine.upload_and_create(5, good=True, start=True, hold=None)
    for number in range(2):
        machine.cancel_number(number)
    machine.pass_seconds(int(2 * GRACE_S))
    assert look(machine) == "cancelling"
    machine.come_to_the_end()

"""A shard whose identical requests run once: what is sent, who gets its result, what is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast
from unittest import mock

import pytest

from batchline.domain import bitmap, ids, plan
from batchline.domain.model import Shard, ShardKey, Usage
from batchline.domain.results import Failure, failure_line, result_line
from batchline.executor import routed, run_once
from batchline.executor.contract import BackendSettings, ShardWork
from batchline.executor.line import Gate, Line
from batchline.executor.run_once import RunOnce
from batchline.executor.shard_run import ShardRun
from batchline.executor.transport.contract import Transport
from tests.unit.test_shard_run import BATCH, USAGE

AWKWARD = '\\",\\"response\\":{} é'


class Runs:
    """Shards over a file of lines; `groups` are the sizes of the groups in it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "input.jsonl"
        self.unreadable: list[ShardRun] = []

    def over(
        self, *groups: int, settled: Sequence[int] = (), suspects: Sequence[int] = ()
    ) -> RunOnce:
        entries: list[bytes] = []
        content = b""
        for size in groups:
            for member in range(size):
                raw = b'{"custom_id":"%d %b","body":{}}' % (len(entries), AWKWARD.encode())
                hashed = plan.FOLLOWS if member else 5
                entries.append(plan.ENTRY.pack(len(content), len(raw), len(entries) + 1, hashed))
                content += raw + b"\n"
        self.path.write_bytes(content)
        marks = bitmap.empty(len(entries))
        for index in settled:
            bitmap.mark(marks, index)
        shard = Shard(
            key=ShardKey(batch_id=BATCH, number=0),
            first_entry=0,
            entries=len(entries),
            model="m",
            epoch=1,
            settled=bytes(marks),
        )
        work = ShardWork(
            shard=shard,
            endpoint="/v1/chat/completions",
            input_path=str(self.path),
            plan_path="unused",
            backends=["b"],
            suspects=suspects,
        )
        self.file = self.path.open("rb")
        return RunOnce.begin(
            work, self.file.fileno(), b"".join(entries), on_unreadable=self.unreadable.append
        )


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    made = Runs(tmp_path)
    yield made
    made.file.close()


def taken(run: ShardRun) -> Line:
    line = run.take()
    assert line is not None
    line.begin("b")
    line.attempt += 1
    return line


def take_all(run: ShardRun) -> list[int]:
    found = []
    while (line := run.take()) is not None:
        found.append(line.index)
    return found


def answer(line: Line, body: bytes = b'{"a":1}', status: int = 200) -> bytes:
    custom_id = f'"{line.index} {AWKWARD}"'.encode()
    return result_line(line.line_id, custom_id, status, "req-7", body)


def settle(run: RunOnce, line: Line, *, succeeded: bool = True, body: bytes = b'{"a":1}') -> int:
    result = answer(line, body, 200 if succeeded else 400)
    return run.settle(line, result, succeeded=succeeded, usage=USAGE if succeeded else None)


@pytest.mark.rule("X11")
def test_one_of_a_group_is_sent_and_each_has_a_line_of_its_own(runs: Runs) -> None:
    run = runs.over(1, 3, 2)
    lines = [taken(run) for _ in range(3)]
    assert [line.index for line in lines] == [0, 1, 4]
    assert run.take() is None
    assert not run.has_line
    held = settle(run, lines[1])
    assert held == sum(map(len, run.outputs))
    assert run.outputs == [answer(run.line_at(index)) for index in (1, 2, 3)]
    assert [json.loads(one)["custom_id"][0] for one in run.outputs] == ["1", "2", "3"]
    assert len({json.loads(one)["id"] for one in run.outputs}) == 3
    settle(run, lines[0])
    settle(run, lines[2])
    assert run.all_settled
    assert run.is_over
    assert (run.completed, run.failed) == (6, 0)


@pytest.mark.rule("X11")
def test_tokens_are_counted_once_and_calls_that_were_not_made_too(runs: Runs) -> None:
    run = runs.over(3, 1)
    settle(run, taken(run))
    settle(run, taken(run))
    group = run.snapshot()
    assert group.usage == USAGE + USAGE
    assert list(bitmap.marked_indexes(group.saved_lines)) == [1, 2]
    assert run.snapshot().saved_lines == bytes(1)


@pytest.mark.rule("X11")
def test_an_error_is_everybodys(runs: Runs) -> None:
    run = runs.over(3)
    settle(run, taken(run), succeeded=False)
    group = run.snapshot()
    assert (run.completed, run.failed, group.outputs) == (0, 3, [])
    assert group.errors == [answer(run.line_at(index), status=400) for index in range(3)]
    assert list(bitmap.marked_indexes(group.failed_lines)) == [0, 1, 2]
    assert group.usage == Usage()


def test_what_is_settled_unsent_saves_nothing(runs: Runs) -> None:
    """A line that killed its workers takes its group along: each other would kill them too."""
    run = runs.over(3, 1)
    line = run.line_at(0)
    failure = failure_line(line.line_id, b'"0"', Failure.WORKER_LOST)
    run.settle(line, failure, succeeded=False, usage=None)
    assert take_all(run) == [3]
    group = run.snapshot()
    assert [json.loads(one)["error"]["code"] for one in group.errors] == ["worker_lost"] * 3
    assert not any(group.saved_lines)


@pytest.mark.parametrize(
    ("settled", "sent", "left"),
    [
        ([0, 1, 2], [3], []),
        ([0], [1, 3], [2]),
        ([1], [0, 3], [2]),
        ([0, 1], [2, 3], []),
        ([3], [0], [1, 2]),
    ],
)
def test_of_what_is_left_of_a_group_the_first_is_sent(
    runs: Runs, settled: list[int], sent: list[int], left: list[int]
) -> None:
    """A group is settled in one commit; damage may take some of it back."""
    run = runs.over(3, 1, settled=settled)
    lines = [taken(run) for _ in sent]
    assert [line.index for line in lines] == sent
    assert run.take() is None
    for line in lines:
        settle(run, line)
    assert run.all_settled
    assert list(bitmap.marked_indexes(run.snapshot().saved_lines)) == left


def test_a_line_that_comes_back_is_still_its_groups(runs: Runs) -> None:
    run = runs.over(3)
    line = taken(run)
    run.put_back(line)
    assert taken(run) is line
    settle(run, line)
    assert run.all_settled


@pytest.mark.rule("X11")
def test_behind_a_closed_gate_a_group_is_done_or_not_at_all(runs: Runs) -> None:
    run = runs.over(2, 2)
    first, second = taken(run), taken(run)
    assert first.admit()
    run.close(Gate.CLOSED)
    settle(run, first)
    run.put_back(second)
    assert run.is_over
    assert list(bitmap.marked_indexes(run.settled)) == [0, 1]
    assert run.ends["b"].finished_late == 1  # requests, not lines


def test_suspects_run_for_their_groups_and_nobody_else_runs(runs: Runs) -> None:
    run = runs.over(2, 3, 1, suspects=[2])
    line = taken(run)
    assert line.index == 2
    settle(run, line)
    assert run.take() is None
    assert list(bitmap.marked_indexes(run.settled)) == [2, 3, 4]


def test_a_group_whose_results_would_be_too_large_runs_more_than_once(runs: Runs) -> None:
    run = runs.over(7)
    body = b'{"a":"%b"}' % (b"x" * 500)
    held = []
    with mock.patch.object(run_once, "GROUP_BYTES", 2_000):
        while (line := run.take()) is not None:
            line.attempt = 1
            before = bitmap.count(run.settled)
            held.append(settle(run, line, body=body))
            assert bitmap.count(run.settled) - before <= 3
    assert len(held) == 3
    assert max(held) <= 2_200
    assert run.all_settled
    assert list(bitmap.marked_indexes(run.snapshot().saved_lines)) == [1, 2, 4, 5]


def test_a_result_that_is_larger_than_that_is_its_own_lines_only(runs: Runs) -> None:
    run = runs.over(3)
    with mock.patch.object(run_once, "GROUP_BYTES", 10):
        settle(run, taken(run))
        assert take_all(run) == [1]


def test_a_rest_is_not_given_out_behind_a_closed_gate(runs: Runs) -> None:
    run = runs.over(3)
    line = taken(run)
    run.close(Gate.CLOSED)
    with mock.patch.object(run_once, "GROUP_BYTES", 10):
        settle(run, line)
    assert run.is_over
    assert list(bitmap.marked_indexes(run.settled)) == [0]


def test_an_input_that_is_gone_leaves_the_others_unsettled(runs: Runs) -> None:
    run = runs.over(3)
    line = taken(run)
    runs.path.write_bytes(runs.path.read_bytes()[: line.length + 1])
    settle(run, line)
    assert runs.unreadable == [run]
    assert list(bitmap.marked_indexes(run.settled)) == [0]


def test_nothing_is_asked_of_a_shard_without_followers(runs: Runs) -> None:
    """What is not to be given is what is settled: one object, so that it costs nothing."""
    run = runs.over(1, 1)
    plain = ShardRun.open(run.work, input_fd=-1, entries=run.entries)
    assert plain.passed is plain.settled
    assert plain.snapshot().saved_lines == b""


def test_the_ids_are_those_of_the_lines(runs: Runs) -> None:
    run = runs.over(2)
    settle(run, taken(run))
    assert [json.loads(one)["id"] for one in run.outputs] == [
        ids.line_id(BATCH, 1),
        ids.line_id(BATCH, 2),
    ]


@pytest.mark.rule("X11")
def test_where_several_backends_share_a_shard_each_group_is_sent_by_one_of_them(
    runs: Runs,
) -> None:
    run = runs.over(1, 3, 2, 1, 4, 2, settled=[8])
    settings = [BackendSettings(name=name, base_url="http://unused/v1") for name in ("b", "c")]
    lanes = routed.lanes_of(settings, [cast("Transport", None)] * 2)
    run.work = replace(run.work, backends=["b", "c"])
    routed.share_out(run, lanes)
    given = []
    while run.has_line:
        for share in run.shares:
            share.lane.divides = True
            if (line := share.take()) is not None:
                line.attempt = 1
                given.append(line.index)
                settle(run, line)
    assert sorted(given) == [0, 1, 4, 6, 7, 11]
    assert run.all_settled

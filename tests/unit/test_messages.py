"""Messages between the control process and a worker: each comes out of the socket as it went in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.domain.attempts import RetryPolicy
from batchline.domain.ids import BatchId, BlobName
from batchline.domain.model import BlobRange, Shard, ShardCommit, ShardKey, Usage
from batchline.executor import messages as m
from batchline.executor.contract import BackendSettings, Ends, Released, ShardWork
from batchline.executor.framing import (
    MAX_MESSAGE_BYTES,
    FrameReader,
    decode_to_control,
    decode_to_worker,
    frame,
    read_frame,
)
from batchline.executor.rates import Told, Want

KEY = ShardKey(batch_id=BatchId("batch_" + "0" * 32), number=7)
USAGE = Usage(
    input_tokens=11, cached_tokens=3, output_tokens=7, reasoning_tokens=2, total_tokens=18
)
SHARD = Shard(
    key=KEY,
    first_entry=1_000,
    entries=1_000,
    model="meta/llama-é",
    epoch=3,
    settled=bytes(range(125)),
    completed=5,
    failed=1,
    usage=USAGE,
    deaths=2,
)
COMMIT = ShardCommit(
    key=KEY,
    epoch=3,
    output=BlobRange(blob=BlobName("segment-a-000001"), start=2**40, stop=2**40 + 9, crc=2**32 - 1),
    errors=None,
    settled=b"\xff" * 125,
    completed=1_000,
    failed=0,
    usage=USAGE,
    failed_lines=bytes(125),
)
SETTINGS = m.WorkerSettings(
    worker="a-0-1",
    segment_directory="/data/segments",
    backends=[
        BackendSettings(name="plain", base_url="http://h/v1"),
        BackendSettings(
            name="full",
            base_url="https://h/v1",
            models=["m"],
            headers={"Authorization": "Bearer k"},
        ),
    ],
    retry=RetryPolicy(max_attempts=9),
)
WORK = ShardWork(
    shard=SHARD,
    endpoint="/v1/chat/completions",
    input_path="/data/input",
    plan_path="/data/plan",
    backends=["plain", "full"],
    listed_by=["full"],
    announced=True,
    suspects=[3, 7],
    lost=[3],
    refuse="model_not_found",
)

TO_WORKER: list[m.ToWorker] = [
    m.Configure(SETTINGS, "segment.synced=kill@3"),
    m.OpenShard(WORK),
    m.CloseGate(KEY.batch_id, 4, 0.5, 590.0),
    m.SetPermits("plain", 16, 3),
    m.SetCircuit("plain", admitting=False, trials=1),
    m.SetAway("plain", ["m", "n"]),
    m.TryModel("plain", "m"),
    m.Serve("m", ["plain", "full"], ["full"]),
    m.SetRates("plain", requests=True, tokens=90_000.0),
    m.SetRates("plain", requests=False, tokens=None),
    m.Grant("plain", 3, 1_250.5),
    m.Proceed(KEY, 3),
    m.Committed([True, False]),
    m.Pause(paused=True),
    m.Drain(2.5),
]
TO_CONTROL: list[m.ToControl] = [
    m.Hello(pid=1234),
    m.Heartbeat(),
    m.Heartbeat({"gpu": 3}, ["gpu"]),
    m.GateClosed(request=4, in_flight={"b": 16}),
    m.Commit([COMMIT, COMMIT]),
    m.SegmentClosed(),
    m.ShardReleased(
        Released(key=KEY, epoch=3, settled=True, ends={"b": Ends(answered=2, closed=1)})
    ),
    m.Handed(KEY),
    m.PermitsHeld("plain", 16, 3),
    m.BackendFault("plain", "shed", "status 429", 1.5, trial=True),
    m.BackendFault("plain", "not_sent", "connection refused", None, trial=False),
    m.LaneIdle("plain", idle=True),
    m.LaneReport("plain", 3, 9, 16, limited=True, answers=4, tokens=100, latency_s=2.5),
    m.LaneReport(
        *("plain", 3, 9, 16),
        limited=True,
        answers=0,
        tokens=0,
        latency_s=0.0,
        older=m.OlderAnswers(answers=2, tokens=70, seconds={2: 3.5, 3: 0.5}, before={3: 2}),
    ),
    m.TrialOver("plain", worked=True),
    m.ModelAway("plain", "m", "status 404", None, trial=True),
    m.ModelTried("plain", "m", worked=False),
    m.AskRates("plain", Want(3, 1_000.0, 400.5)),
    m.RatesHeard("plain", tokens=-120.5, refused=True, retry_after_s=1.5),
    m.RatesHeard("plain", requests_told=Told(limit=60, remaining=59, reset_s=1.0), age_s=2.5),
    m.Trying(KEY, 3),
    m.Tried(KEY, 3),
    m.InputUnreadable(KEY),
    m.StorageTrouble("disk_full"),
    m.StorageTrouble(None),
    m.Drained(),
]


def reader_with(data: bytes, *, eof: bool = True) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    if eof:
        reader.feed_eof()
    return reader


@pytest.mark.parametrize(
    ("messages", "decode", "union"),
    [
        (TO_WORKER, decode_to_worker, m.ToWorker),
        (TO_CONTROL, decode_to_control, m.ToControl),
    ],
    ids=["to worker", "to control"],
)
async def test_every_message_comes_out_as_it_went_in_and_in_order(
    messages: list[m.ToWorker | m.ToControl],
    decode: Callable[[bytes], object],
    union: object,
) -> None:
    """If a type is missing here, add one of it to the list above."""
    assert {type(message) for message in messages} == set(get_args(union))
    reader = reader_with(b"".join(map(frame, messages)))
    for message in messages:
        payload = await read_frame(reader)
        assert payload is not None
        assert decode(payload) == message
    assert await read_frame(reader) is None


async def test_a_message_may_come_byte_by_byte() -> None:
    reader = reader_with(b"", eof=False)
    reading = asyncio.ensure_future(read_frame(reader))
    for byte in frame(m.OpenShard(WORK)):
        assert not reading.done()
        reader.feed_data(bytes([byte]))
        await asyncio.sleep(0)
    payload = await reading
    assert payload is not None
    assert decode_to_worker(payload) == m.OpenShard(WORK)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9])
async def test_an_end_in_the_middle_of_a_message_is_an_end(length: int) -> None:
    """A killed worker leaves half a message; what came before it counts."""
    framed = frame(m.Hello(pid=1234))
    reader = reader_with(framed + framed[:length])
    assert await read_frame(reader) is not None
    assert await read_frame(reader) is None


async def test_a_broken_connection_is_an_end() -> None:
    reader = reader_with(b"\x00\x00", eof=False)
    reader.set_exception(ConnectionResetError())
    assert await read_frame(reader) is None


async def test_a_length_that_no_message_has_is_refused_before_it_is_read() -> None:
    reader = reader_with((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(ValueError, match="out of step"):
        await read_frame(reader)


async def test_the_longest_message_is_taken() -> None:
    reader = reader_with(MAX_MESSAGE_BYTES.to_bytes(4, "big"), eof=False)
    reading = asyncio.ensure_future(read_frame(reader))
    await asyncio.sleep(0)
    assert not reading.done()
    reader.feed_eof()
    assert await reading is None


def test_each_side_understands_only_what_is_said_to_it() -> None:
    payload = frame(m.Drained())[4:]
    with pytest.raises(ValueError, match="Drained"):
        decode_to_worker(payload)


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 7))
def test_a_stream_is_cut_into_the_same_payloads_whatever_pieces_it_comes_in(
    payloads: list[bytes], piece: int
) -> None:
    stream = b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)
    reader = FrameReader()
    found = [
        payload
        for start in range(0, len(stream), piece)
        for payload in reader.feed(stream[start : start + piece])
    ]
    assert found == payloads


def test_a_stream_that_is_out_of_step_is_refused() -> None:
    with pytest.raises(ValueError, match="out of step"):
        list(FrameReader().feed(b"\xff\xff\xff\xff"))

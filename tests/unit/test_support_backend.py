"""The scripted backend: what tests lean on has to hold by itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import openai
import pytest
from openai import AsyncOpenAI

from tests.support.scripted_backend import (
    Answer,
    BackendControl,
    Fault,
    Kind,
    Script,
    backend_here,
    backend_process,
    read_log,
)

MODEL = "test-model"


@pytest.fixture(params=["here", "process"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[BackendControl]:
    start = backend_here if request.param == "here" else backend_process
    async with start() as control:
        yield control


@pytest.fixture
async def here() -> AsyncIterator[BackendControl]:
    async with backend_here() as control:
        yield control


def request_bytes(body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chat(identity: str, *, more: str = "", model: str = MODEL) -> bytes:
    content = f"[[id={identity}]] hello {more}"
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}]}).encode()


async def dialled(
    control: BackendControl,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = control.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def exchanged(control: BackendControl, raw: bytes) -> bytes:
    """Everything that a fresh connection gives back for `raw`, which ends it."""
    reader, writer = await dialled(control)
    try:
        writer.write(raw)
        return await reader.read()
    finally:
        writer.close()


async def asked(control: BackendControl, identity: str, more: str = "") -> bytes:
    return await exchanged(control, request_bytes(chat(identity, more=more), "connection: close"))


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def test_the_official_client_gets_good_answers_from_every_endpoint(
    backend: BackendControl,
) -> None:
    async with AsyncOpenAI(base_url=backend.base_url, api_key="sk-1", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        talked = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "[[id=a]]"}]
        )
        completed = await client.completions.create(model=MODEL, prompt="[[id=b]]")
        embedded = await client.embeddings.create(
            model=MODEL, input="[[id=c]]", encoding_format="float"
        )
        responded = await client.responses.create(model=MODEL, input="[[id=d]]")
    assert (talked.choices[0].message.content or "").startswith("[[id=a]]")
    assert completed.choices[0].text.startswith("[[id=b]]")
    assert embedded.data[0].embedding == [0.125, -0.5, 0.25]
    assert '"[[id=c]]' in embedded.model_dump_json()
    assert responded.output_text.startswith("[[id=d]]")
    assert talked.usage is not None
    assert responded.usage is not None
    assert (talked.usage.total_tokens, responded.usage.total_tokens) == (18, 18)

    log = await backend.log()
    assert [event.id for event in log.arrivals] == ["a", "b", "c", "d"]
    assert {event.authorization for event in log.arrivals} == {"Bearer sk-1"}
    assert log.statuses() == {name: {200} for name in "abcd"}


async def test_an_arrival_tells_the_exact_body_and_the_key(here: BackendControl) -> None:
    body = chat("x")
    await exchanged(here, request_bytes(body, "idempotency-key: k-1", "connection: close"))
    (arrival,) = (await here.log()).arrivals
    assert arrival.sha256 == hashlib.sha256(body).hexdigest()
    assert arrival.bytes == len(body)
    assert arrival.idempotency_key == "k-1"
    assert arrival.first_byte_at <= arrival.at <= time.time()


async def test_a_chunked_body_is_the_same_request(here: BackendControl) -> None:
    body = chat("x")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (body[:9], body[9:]))
    await exchanged(here, head + b"connection: close\r\n\r\n" + chunks + b"0\r\n\r\n")
    (arrival,) = (await here.log()).arrivals
    assert arrival.sha256 == hashlib.sha256(body).hexdigest()


async def test_without_a_marker_the_idempotency_key_names_the_request(
    here: BackendControl,
) -> None:
    body = json.dumps({"model": MODEL, "input": "plain"}).encode()
    raw = request_bytes(
        body, 'idempotency-key: say "k"', "connection: close", path="/v1/embeddings"
    )
    answer = json.loads(body_of(await exchanged(here, raw)))
    assert (await here.log()).arrivals[0].id == 'say "k"'
    assert answer["marker"].startswith('[[id=say "k"]]')


async def test_a_marker_with_escapes_comes_back_as_it_was(here: BackendControl) -> None:
    answer = json.loads(body_of(await asked(here, 'ü "x" \\ \n')))
    assert answer["choices"][0]["message"]["content"].startswith('[[id=ü "x" \\ \n]]')


async def test_a_connection_is_used_again_and_again(here: BackendControl) -> None:
    reader, writer = await dialled(here)
    for identity in ("a", "b", "c"):
        writer.write(request_bytes(chat(identity)))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()
    assert (await here.stats()).connections == 1


async def test_held_answers_wait_for_their_release_each_by_its_id(
    backend: BackendControl,
) -> None:
    await backend.set_script(Script(answer=Answer(hold=True)))
    got: list[str] = []

    async def ask(identity: str) -> None:
        await asked(backend, identity)
        got.append(identity)

    async with anyio.create_task_group() as asking:
        for identity in ("a", "b", "c"):
            asking.start_soon(ask, identity)
        stats = await backend.wait_until(min_held=3)
        assert (stats.in_flight, stats.max_in_flight, stats.answered) == (3, 3, 0)
        assert await backend.release("b") == 1
        await backend.wait_until(in_flight=2)
        assert await backend.release() == 2
    assert got[0] == "b"
    assert sorted(got) == ["a", "b", "c"]


async def test_after_stop_holding_nothing_is_held(here: BackendControl) -> None:
    await here.set_script(Script(answer=Answer(hold=True)))
    async with anyio.create_task_group() as asking:
        asking.start_soon(asked, here, "a")
        await here.wait_until(min_held=1)
        assert await here.stop_holding() == 1
    assert body_of(await asked(here, "b")).startswith(b"{")


async def test_a_client_that_leaves_is_an_abort_seen_at_once(backend: BackendControl) -> None:
    await backend.set_script(Script(answer=Answer(hold=True)))
    _, writer = await dialled(backend)
    writer.write(request_bytes(chat("gone")))
    await backend.wait_for_arrivals(1)
    writer.transport.abort()
    stats = await backend.wait_until(min_aborted=1, in_flight=0)
    assert (stats.answered, stats.held) == (0, 0)
    assert [event.kind for event in (await backend.log()).events] == [Kind.ARRIVED, Kind.ABORTED]
    assert await backend.release() == 0


async def test_a_client_that_leaves_within_its_request_is_noted_with_its_first_byte(
    here: BackendControl,
) -> None:
    before = time.time()
    reader, writer = await dialled(here)
    writer.write(request_bytes(chat("half"), "expect: 100-continue")[:-5])
    await reader.readuntil(b"100 Continue")
    writer.close()
    await here.wait_until(min_broken_off=1)
    log = await here.log()
    assert (log.arrivals, len(log.arrived_after(before))) == ([], 1)
    assert log.arrived_after(time.time()) == []


async def test_a_wait_that_comes_to_nothing_says_what_there_is(here: BackendControl) -> None:
    with pytest.raises(TimeoutError, match=r"arrivals=0"):
        await here.wait_for_arrivals(1, timeout_s=0.01)


async def test_delays_come_from_the_script_and_from_markers(here: BackendControl) -> None:
    await here.set_script(Script(answer=Answer(latency_s=30)))
    started = time.monotonic()
    await asked(here, "a", more="[[delay=0.05]]")
    assert 0.05 <= time.monotonic() - started < 5


async def test_markers_choose_the_status_and_the_fault(here: BackendControl) -> None:
    assert (await asked(here, "a", more="[[status=422]]")).startswith(b"HTTP/1.1 422 ")
    with pytest.raises(ConnectionResetError):
        await asked(here, "b", more="[[fault=reset]]")


async def test_each_id_follows_its_plan_and_the_last_answer_repeats(here: BackendControl) -> None:
    plan = (Answer(status=500), Answer(status=503, retry_after="7"), Answer())
    await here.set_script(Script(by_id={"a": plan}, fail_first=1, failure=Answer(status=502)))
    heads = [(await asked(here, "a")).partition(b"\r\n\r\n")[0] for _ in range(4)]
    assert [head.split()[1] for head in heads] == [b"500", b"503", b"200", b"200"]
    assert b"retry-after: 7" in heads[1]
    assert [(await asked(here, "b")).split()[1] for _ in range(2)] == [b"502", b"200"]
    log = await here.log()
    assert [event.attempt for event in log.arrivals] == [1, 2, 3, 4, 1, 2]
    assert log.resent() == 4


async def test_above_the_cap_requests_are_shed_and_use_no_attempt_of_the_plan(
    here: BackendControl,
) -> None:
    await here.set_script(
        Script(cap=1, by_id={"b": (Answer(status=418),)}, answer=Answer(hold=True))
    )
    async with anyio.create_task_group() as asking:
        asking.start_soon(asked, here, "a")
        await here.wait_until(min_held=1)
        shed = await asked(here, "b")
        assert shed.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 0" in shed
        await here.release()
    assert (await asked(here, "b")).startswith(b"HTTP/1.1 418 ")


async def test_an_unknown_model_is_not_found_unless_the_script_takes_any(
    here: BackendControl,
) -> None:
    raw = request_bytes(chat("a", model="other"), "connection: close")
    refused = await exchanged(here, raw)
    assert refused.startswith(b"HTTP/1.1 404 ")
    assert json.loads(body_of(refused))["error"]["code"] == "model_not_found"
    await here.set_script(Script(check_model=False))
    assert json.loads(body_of(await exchanged(here, raw)))["model"] == "other"


@pytest.mark.parametrize("chunked", [False, True])
async def test_good_answers_parse_whichever_way_they_are_framed(
    chunked: bool, here: BackendControl
) -> None:
    await here.set_script(Script(answer=Answer(chunked=chunked, text_bytes=100_000)))
    async with AsyncOpenAI(base_url=here.base_url, api_key="k", max_retries=0) as client:
        got = await client.completions.create(model=MODEL, prompt="[[id=a]]")
    assert len(got.choices[0].text) == 100_000


async def test_a_pretty_answer_has_line_breaks_and_is_good(here: BackendControl) -> None:
    await here.set_script(Script(answer=Answer(fault=Fault.PRETTY)))
    body = body_of(await asked(here, "a"))
    assert b"\n" in body
    assert json.loads(body)["usage"]["total_tokens"] == 18


async def test_the_unusable_answers_are_unusable_each_in_its_way(here: BackendControl) -> None:
    async def given(fault: Fault) -> bytes:
        await here.set_script(Script(answer=Answer(fault=fault)))
        return await asked(here, "a")

    with pytest.raises(UnicodeDecodeError):
        body_of(await given(Fault.INVALID_UTF8)).decode()
    with pytest.raises(json.JSONDecodeError):
        json.loads(body_of(await given(Fault.NOT_JSON)))
    assert json.loads(body_of(await given(Fault.WRONG_USAGE)))["usage"] == "plenty"
    truncated = await given(Fault.TRUNCATED)
    promised = int(truncated.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert 0 < len(body_of(truncated)) < promised
    assert not (await given(Fault.NOT_HTTP)).startswith(b"HTTP/")
    assert await given(Fault.CLOSE) == b""
    with pytest.raises(ConnectionResetError):
        await given(Fault.RESET)
    stats = await here.stats()
    assert (stats.dropped, stats.in_flight) == (3, 0)


async def test_a_huge_answer_comes_whole(here: BackendControl) -> None:
    await here.set_script(Script(answer=Answer(text_bytes=20_000_000)))
    assert len(body_of(await asked(here, "a"))) > 20_000_000


async def test_a_silent_backend_has_the_request_in_flight_until_the_client_leaves(
    here: BackendControl,
) -> None:
    await here.set_script(Script(answer=Answer(fault=Fault.SILENT)))
    _, writer = await dialled(here)
    writer.write(request_bytes(chat("a")))
    await here.wait_until(in_flight=1)
    writer.close()
    await here.wait_until(in_flight=0, min_aborted=1)


async def test_unread_requests_are_reset_as_often_as_asked(here: BackendControl) -> None:
    before = time.time()
    await here.set_script(Script(unread_resets=1))
    with pytest.raises(ConnectionResetError):
        await asked(here, "a")
    assert (await asked(here, "a")).startswith(b"HTTP/1.1 200 ")
    log = await here.log()
    assert [event.kind for event in log.events] == [Kind.CUT_OFF, Kind.ARRIVED, Kind.ANSWERED]
    assert len(log.arrived_after(before)) == 2


async def test_a_backend_that_goes_down_refuses_and_comes_up_on_the_same_port(
    backend: BackendControl,
) -> None:
    await backend.set_script(Script(answer=Answer(hold=True)))
    reader, writer = await dialled(backend)
    writer.write(request_bytes(chat("a")))
    await backend.wait_until(in_flight=1)
    await backend.go_down()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert (await backend.stats()).dropped == 1
    with pytest.raises(ConnectionRefusedError):
        await dialled(backend)
    await backend.come_up()
    await backend.set_script(Script())
    assert (await asked(backend, "a")).startswith(b"HTTP/1.1 200 ")


async def test_the_catalogue_can_fail_and_change(here: BackendControl) -> None:
    async with AsyncOpenAI(base_url=here.base_url, api_key="k", max_retries=0) as client:
        await here.set_script(Script(models_answer=Answer(status=404)))
        with pytest.raises(openai.NotFoundError):
            await client.models.list()
        await here.set_script(Script(models=("m1", "m2")))
        assert [model.id async for model in client.models.list()] == ["m1", "m2"]
    assert (await here.stats()).catalogue_calls == 2
    assert (await here.stats()).arrivals == 0


async def test_the_log_file_has_every_event_also_after_the_backend_was_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    async with backend_process(Script(answer=Answer(hold=True)), log=path) as backend:
        _, writer = await dialled(backend)
        writer.write(request_bytes(chat("a")))
        await backend.wait_for_arrivals(1)
        seen = (await backend.log()).events
        assert backend.pid is not None
        os.kill(backend.pid, 9)
        writer.close()
    assert read_log(path).events == seen
    assert [event.id for event in seen] == ["a"]


async def test_clear_forgets_what_was_seen_but_not_what_is_in_flight(here: BackendControl) -> None:
    await asked(here, "a")
    await here.set_script(replace(Script(), answer=Answer(hold=True)))
    async with anyio.create_task_group() as asking:
        asking.start_soon(asked, here, "b")
        await here.wait_until(min_held=1)
        await here.clear()
        stats = await here.stats()
        assert (stats.arrivals, stats.in_flight, stats.max_in_flight) == (0, 1, 1)
        await here.stop_holding()
    assert [event.kind for event in (await here.log()).events] == [Kind.ANSWERED]


async def test_the_log_answers_when_what_was_in_flight(here: BackendControl) -> None:
    before = time.time()
    await here.set_script(Script(answer=Answer(hold=True)))
    async with anyio.create_task_group() as asking:
        asking.start_soon(asked, here, "a")
        asking.start_soon(asked, here, "b")
        await here.wait_until(min_held=2)
        during = time.time()
        await here.release("a")
        await here.wait_until(in_flight=1)
        between = time.time()
        await here.release()
    log = await here.log()
    counts = [log.in_flight_at(instant) for instant in (before, during, between, time.time())]
    assert counts == [0, 2, 1, 0]
    assert between <= log.quiet_at() <= time.time()

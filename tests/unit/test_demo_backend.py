"""The example backend over a real socket, with an encoder that the test holds and releases."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support.installed import require_modules

require_modules("numpy", "tokenizers", "openai")

import aiohttp  # noqa: E402  # the skip above comes first
import numpy as np  # noqa: E402  # as above
import openai  # noqa: E402  # as above
import uvicorn  # noqa: E402  # as above
from numpy.typing import NDArray  # noqa: E402  # as above

from examples.embeddings_backend.app import Backend  # noqa: E402  # as above
from examples.embeddings_backend.gathering import Gatherer  # noqa: E402  # as above

MODEL = "held-model"
DEADLINE_S = 30.0


class HeldEncoder:
    """Two dimensions: the number of tokens and 1. `release` lets the passes go."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.passes: list[list[int]] = []  # the lengths of each pass; appended by encoding threads
        self.fail = False

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [[1] * len(text) for text in texts]

    def encode(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.passes.append([len(sequence) for sequence in tokens])
        assert self.release.wait(DEADLINE_S), "nobody released the encoder"
        if self.fail:
            raise RuntimeError("a bad weight")
        return np.array([[len(sequence), 1] for sequence in tokens], dtype=np.float32)


class Served:
    """A running backend, the encoder behind it and an HTTP session in front of it."""

    def __init__(
        self, url: str, backend: Backend, encoder: HeldEncoder, session: aiohttp.ClientSession
    ) -> None:
        self.url = url
        self.stats = backend.stats
        self.encoder = encoder
        self.session = session

    async def post(self, **body: object) -> tuple[int, dict[str, object]]:
        return await self.post_bytes(json.dumps(body).encode())

    async def post_bytes(self, body: bytes) -> tuple[int, dict[str, object]]:
        async with self.session.post(f"{self.url}/v1/embeddings", data=body) as answer:
            return answer.status, await answer.json()

    async def until_received(self, count: int) -> None:
        await self.until(lambda: self.stats.received == count)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110  # the counts have no event to wait for
                await asyncio.sleep(0.002)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # pytest keeps its own


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    encoder = HeldEncoder()
    gatherer = Gatherer(encoder.encode, threads=1, max_texts=4)
    backend = Backend(model_id=MODEL, dimensions=2, tokenizer=encoder, gatherer=gatherer)
    server = _Server(uvicorn.Config(backend.application(), log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        running = asyncio.create_task(server.serve(sockets=[listener]))
        # A connection per request: uvicorn closes the one on which it answered a 500.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Served(f"http://127.0.0.1:{port}", backend, encoder, session)
        encoder.release.set()
        server.should_exit = True
        await running


async def test_the_official_client_gets_its_vectors_in_order(served: Served) -> None:
    served.encoder.release.set()
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any") as client:
        answer = await client.embeddings.create(model=MODEL, input=["abc", "a", "ab"])
        models = await client.models.list()
    assert [one.embedding for one in answer.data] == [[3.0, 1.0], [1.0, 1.0], [2.0, 1.0]]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (6, 6)
    assert [model.id for model in models.data] == [MODEL]


async def test_plain_floats_are_the_default_of_the_wire(served: Served) -> None:
    served.encoder.release.set()
    status, answer = await served.post(model=MODEL, input="four")
    assert status == 200
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": [4.0, 1.0]}]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "other", "input": "x"}, 404, "model", "model_not_found"),
        ({"model": MODEL, "input": ""}, 400, "input", "invalid_value"),
        ({"model": MODEL, "input": []}, 400, "input", "invalid_value"),
        ({"model": MODEL, "input": ["x", ""]}, 400, "input", "invalid_value"),
        ({"model": MODEL, "input": ["x"] * 2049}, 400, "input", "invalid_value"),
        ({"model": MODEL, "input": [[1, 2]]}, 400, None, "invalid_value"),
        ({"model": MODEL, "input": "x", "dimensions": 3}, 400, "dimensions", "invalid_value"),
        ({"model": MODEL, "input": "x", "encoding_format": "hex"}, 400, None, "invalid_value"),
        ({"input": "x"}, 400, None, "invalid_value"),
    ],
)
async def test_bad_input_gets_the_error_envelope(
    served: Served, body: dict[str, object], status: int, param: str | None, code: str
) -> None:
    got, answer = await served.post(**body)
    error = answer["error"]
    assert isinstance(error, dict)
    assert (got, error["param"], error["code"]) == (status, param, code)
    assert sorted(error) == ["code", "message", "param", "type"]
    assert served.encoder.passes == []


@pytest.mark.parametrize("body", [b"", b"{", b'{"x":' + b"[" * 100_000, b'{"model":"\xff"}'])
async def test_a_body_that_is_not_json_gets_the_error_envelope(served: Served, body: bytes) -> None:
    status, answer = await served.post_bytes(body)
    assert status == 400
    assert isinstance(answer["error"], dict)


async def test_an_unknown_route_gets_the_error_envelope(served: Served) -> None:
    async with served.session.get(f"{served.url}/v1/chat/completions") as answer:
        body = await answer.json()
    assert answer.status == 404
    assert body["error"]["message"] == "Invalid URL (GET /v1/chat/completions)"


async def test_requests_that_wait_together_are_encoded_together_by_length(served: Served) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(served.post(model=MODEL, input="first"))
        await served.until(lambda: len(served.encoder.passes) == 1)
        for length in (9, 2, 8, 3, 7, 1):  # the oldest of these, 9, chooses its company
            group.create_task(served.post(model=MODEL, input="x" * length))
            await served.until_received(served.stats.received + 1)
        served.encoder.release.set()
    assert [sorted(one) for one in served.encoder.passes] == [[5], [3, 7, 8, 9], [1, 2]]


async def test_a_client_that_leaves_frees_its_work_and_is_counted(served: Served) -> None:
    staying = asyncio.create_task(served.post(model=MODEL, input="stays"))
    await served.until(lambda: len(served.encoder.passes) == 1)
    leaving = asyncio.create_task(served.post(model=MODEL, input="leaves early"))
    await served.until_received(2)
    assert served.stats.quiet_at is None

    leaving.cancel()
    await served.until(lambda: served.stats.aborted == 1)
    # It waits in the same queue, so the pass that takes it would have taken the abandoned one too.
    after = asyncio.create_task(served.post(model=MODEL, input="is next"))
    await served.until_received(3)
    served.encoder.release.set()
    assert (await staying)[0] == (await after)[0] == 200

    assert served.encoder.passes == [[5], [7]], "the abandoned text was encoded"
    async with served.session.get(f"{served.url}/stats") as answer:
        stats = await answer.json()
    counts = {name: stats[name] for name in ("received", "answered", "aborted", "in_flight")}
    assert counts == {"received": 3, "answered": 2, "aborted": 1, "in_flight": 0}
    assert stats["last_arrival_at"] <= stats["quiet_at"]


async def test_a_pass_that_fails_answers_500_and_the_next_one_runs(served: Served) -> None:
    served.encoder.release.set()
    served.encoder.fail = True
    status, answer = await served.post(model=MODEL, input="x")
    error = {"message": "RuntimeError", "type": "server_error", "param": None, "code": None}
    assert (status, answer["error"]) == (500, error)
    served.encoder.fail = False
    assert (await served.post(model=MODEL, input="x"))[0] == 200
    assert served.stats.in_flight == 0

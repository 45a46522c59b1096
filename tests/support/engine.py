"""A simulated inference engine on loopback: places, tokens, metrics, and a habit about closes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

MODEL: Final = "simulated"

# The metrics page of each engine, in its own words: running, waiting.
_PAGES: Final = {
    "vllm": 'vllm:num_requests_running{model_name="m"} %d.0\nvllm:num_requests_waiting{} %d.0\n',
    "sglang": "sglang:num_running_reqs %d\nsglang:num_queue_reqs %d\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How the engine behaves.

    `notices`: which closes stop a generation: those of streams, of whole answers. `metrics`: whose
    page it has, "slots" for llama.cpp's, None for none. It runs `places` generations at once, each
    of up to `max_tokens` at `token_s`. `key` is the whole header. `breaks_after` closes it answers
    nothing any more.
    """

    streams: bool = True
    tells_usage: bool = True
    notices: frozenset[str] = frozenset({"whole", "stream"})
    metrics: str | None = "vllm"
    owner: str = "somebody"
    tells_places: bool = False  # as llama.cpp does, at /props
    places: int = 4
    token_s: float = 0.01
    max_tokens: int = 10**9
    refuses: frozenset[str] = frozenset()  # members of a request that it does not know
    endpoints: frozenset[str] = frozenset({"/v1/chat/completions"})
    key: str | None = None
    breaks_after: int | None = None
    garbage: bool = False


@dataclass(slots=True)
class Engine:
    """A running engine. `stopped` and `finished` count generations by how they ended.

    `most` are the most that it had in hand, running or waiting.
    """

    habits: Habits
    url: str = ""
    requests: int = 0
    closes: int = 0
    running: int = 0
    waiting: int = 0
    most: int = 0
    stopped: int = 0
    finished: int = 0
    places: asyncio.Semaphore = field(init=False)
    generations: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.places = asyncio.Semaphore(self.habits.places)

    @property
    def is_broken(self) -> bool:
        return self.habits.breaks_after is not None and self.closes >= self.habits.breaks_after

    # -- pages -----------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.is_broken:
            await asyncio.get_running_loop().create_future()
        if self.habits.garbage:
            return web.Response(text="<html>hello</html>", content_type="text/html")
        if self.habits.key not in (None, request.headers.get("Authorization")):
            return _error(401, "no key")
        if request.path == "/v1/models":
            listed = {"id": MODEL, "object": "model", "owned_by": self.habits.owner}
            return web.json_response({"object": "list", "data": [listed]})
        page = self._page(request.path)
        if page is not None:
            return web.Response(text=page)
        if request.method != "POST" or request.path not in self.habits.endpoints:
            return _error(404, "no such page")
        return await self._generate(request, await request.json())

    def _page(self, path: str) -> str | None:
        metrics = self.habits.metrics
        if path == "/metrics" and metrics in _PAGES:
            return "# HELP x\n" + _PAGES[metrics] % (self.running, self.waiting)
        if path == "/props" and self.habits.tells_places:
            return json.dumps({"total_slots": self.habits.places, "chat_template": "{{ x }}"})
        if path == "/slots" and metrics == "slots":
            places = range(self.habits.places)
            return json.dumps([{"id": n, "is_processing": n < self.running} for n in places])
        return None

    # -- generations -----------------------------------------------------------------------

    async def _generate(self, request: web.Request, body: Any) -> web.StreamResponse:
        self.requests += 1
        if unknown := self.habits.refuses & set(body):
            return _error(400, f"unknown: {sorted(unknown)}")
        if request.path == "/v1/embeddings":
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return web.json_response({"object": "list", "data": [], "usage": usage})
        count = min(body.get("max_tokens", 16), self.habits.max_tokens)
        streams = self.habits.streams and body.get("stream") is True
        tokens: asyncio.Queue[str | None] = asyncio.Queue()
        generation = asyncio.create_task(self._run(count, tokens))
        self.generations.add(generation)
        generation.add_done_callback(self.generations.discard)
        try:
            if streams:
                return await self._streamed(request, count, tokens)
            said = [token async for token in _all(tokens)]
            message = {"role": "assistant", "content": "".join(said)}
            choice = {"index": 0, "message": message, "finish_reason": "length"}
            return web.json_response({"choices": [choice], "usage": _usage(count)})
        except (asyncio.CancelledError, ConnectionError):
            self.closes += 1
            if ("stream" if streams else "whole") in self.habits.notices:
                generation.cancel()
            raise

    async def _run(self, count: int, tokens: asyncio.Queue[str | None]) -> None:
        self.waiting += 1
        self.most = max(self.most, self.running + self.waiting)
        try:
            await self.places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            for _ in range(count):
                await asyncio.sleep(self.habits.token_s)
                tokens.put_nowait("y")
            tokens.put_nowait(None)
            self.finished += 1
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        finally:
            self.running -= 1
            self.places.release()

    async def _streamed(
        self, request: web.Request, count: int, tokens: asyncio.Queue[str | None]
    ) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        async for token in _all(tokens):
            delta = {"index": 0, "delta": {"content": token}, "finish_reason": None}
            await answer.write(b"data: %b\n\n" % json.dumps({"choices": [delta]}).encode())
        if self.habits.tells_usage:
            last = {"choices": [], "usage": _usage(count)}
            await answer.write(b"data: %b\n\n" % json.dumps(last).encode())
        await answer.write(b"data: [DONE]\n\n")
        await answer.write_eof()
        return answer


async def _all(tokens: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (token := await tokens.get()) is not None:
        yield token


def _usage(count: int) -> dict[str, int]:
    return {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


@asynccontextmanager
async def engine(habits: Habits) -> AsyncIterator[Engine]:
    """An engine on the running loop for the length of the block."""
    one = Engine(habits)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    one.url = f"http://127.0.0.1:{port}"
    try:
        yield one
    finally:
        for generation in list(one.generations):
            generation.cancel()
        await asyncio.gather(*one.generations, return_exceptions=True)
        await runner.cleanup()

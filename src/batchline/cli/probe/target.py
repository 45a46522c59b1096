"""The backend under the probe: requests of one kind, counted, and closed as a cancel closes them.

It uses the workers' own transport, so that what is measured is what will happen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from batchline.domain.errors import UpstreamError
from batchline.domain.model import Endpoint
from batchline.executor.contract import BackendSettings
from batchline.executor.streamed import StreamedAnswer, Streaming, exchange, streamed
from batchline.executor.transport.choice import transport_for
from batchline.executor.transport.contract import Answer

MAX_REQUESTS: Final = 50
PAGE_S: Final = 5.0  # for a page of the engine's own
_ANSWER_BYTES: Final = 16 * 1024 * 1024
_LONG: Final = "Count from 1 to 100000, one number a line, and do not stop before the end."
# From the most that shows something to the least; what a server does not know or allow, it refuses.
_LONG_FORMS: Final[tuple[Mapping[str, object], ...]] = (
    {"max_tokens": 4096, "ignore_eos": True},
    {"max_tokens": 4096},
    {"max_tokens": 1024},
    {"max_tokens": 256},
)
_BRIEF_FORM: Final[Mapping[str, object]] = {"max_tokens": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the steps take. A control that ends before `least_left_alone_s` shows nothing."""

    poll_s: float = 0.1
    left_alone_s: float = 5.0
    least_left_alone_s: float = 1.5
    closed_after_s: float = 0.5
    refused_within_s: float = 1.0
    starts_within_s: float = 8.0
    settles_within_s: float = 8.0
    busy_after_s: float = 1.5
    short_most_s: float = 4.0
    pause_s: float = 0.5
    hard_close_after_s: float = 0.05  # of a generation; embeddings may be done by then
    hard_close_at_once_s: float = 0.01
    answers_within_s: float = 5.0
    up_again_s: float = 2.0
    last_steps_s: float = 16.0  # kept back for the hard closes and the looks afterwards


class OutOfBudget(Exception):
    """No more requests, or no more time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request's answer. `pieces` is there when it was asked for as a stream."""

    answer: Answer
    took_s: float
    pieces: StreamedAnswer | None = None


class Target:
    """One backend. `model` and `endpoint` are set once they are known."""

    def __init__(
        self, backend: BackendSettings, *, timeout_s: float, pace: Pace | None = None
    ) -> None:
        self.pace = pace or Pace()
        self.base_url = backend.base_url
        bounded = replace(backend, total_timeout_s=timeout_s, max_answer_bytes=_ANSWER_BYTES)
        root = backend.base_url.removesuffix("/v1")
        self._api = transport_for(bounded)
        self._root = transport_for(replace(bounded, base_url=root))
        self._deadline = time.monotonic() + timeout_s
        self.model = ""
        self.endpoint = Endpoint.CHAT_COMPLETIONS
        self.requests = 0
        self.closes = 0
        self._form = 0
        self._running: set[asyncio.Task[Asked]] = set()

    async def close(self) -> None:
        """Leave nothing open."""
        await self.hang_up_all()
        await self._api.close()
        await self._root.close()

    @property
    def left_s(self) -> float:
        return self._deadline - time.monotonic()

    def needs(self, *, seconds: float = 0.0, requests: int = 0) -> None:
        """Raises OutOfBudget when there is not so much left."""
        if self.left_s < seconds or self.requests + requests > MAX_REQUESTS:
            raise OutOfBudget

    async def models(self) -> Answer:
        """The answer of `/v1/models`; raises as `Transport.get_json`."""
        return await self._api.get_json("/models", timeout_s=min(PAGE_S, max(0.1, self.left_s)))

    async def page(self, path: str) -> bytes | None:
        """A page at the root of the server; None when there is none."""
        try:
            answer = await self._root.get_json(path, timeout_s=min(PAGE_S, max(0.1, self.left_s)))
        except UpstreamError:
            return None
        return answer.body if answer.status == 200 else None

    async def short(self, *, stream: bool = False, most_s: float = 30.0) -> Asked:
        """A request that is answered as soon as it is served.

        Raises:
            UpstreamError: as `Transport.send`.
            TimeoutError: not within `most_s`; it is closed then.
            OutOfBudget: there is no request or no time left.
        """
        self.needs(seconds=0.1, requests=1)
        async with asyncio.timeout(min(most_s, self.left_s)):
            return await self._ask({**self._prompt("Say hi."), **self._few_tokens()}, stream=stream)

    def long(self, *, stream: bool) -> asyncio.Task[Asked]:
        """Begin a generation that goes on for as long as the backend lets it."""
        return self._begin(_LONG_FORMS[self._form], stream=stream)

    def brief(self) -> asyncio.Task[Asked]:
        """Begin one that is soon over, also where nobody notices that it was closed."""
        return self._begin(_BRIEF_FORM, stream=False)

    def asks_for_less(self, running: asyncio.Task[Asked]) -> bool:
        """Whether the long request was refused; the next one then asks for less, if it can.

        Raises:
            UpstreamError: it ended so.
        """
        if not running.done() or running.result().answer.status < 300:
            return False
        if self._form + 1 == len(_LONG_FORMS):
            return False
        self._form += 1
        return True

    def _begin(self, form: Mapping[str, object], *, stream: bool) -> asyncio.Task[Asked]:
        self.needs(requests=1)
        if self.generates:
            body = {**self._prompt(_LONG), "temperature": 0, **form}
        else:
            body = self._prompt(_LONG * 100)
        running = asyncio.get_running_loop().create_task(self._ask(body, stream=stream))
        self._running.add(running)
        return running

    async def hang_up(self, *running: asyncio.Task[Asked]) -> int:
        """Close their connections, as an abort does; how many had no answer yet."""
        open_ones = [task for task in running if not task.done()]
        for task in open_ones:
            task.cancel()
        ends = await asyncio.gather(*running, return_exceptions=True)
        self._running.difference_update(running)
        cut = sum(isinstance(end, asyncio.CancelledError) for end in ends)
        self.closes += cut
        return cut

    async def hang_up_all(self) -> None:
        """As `hang_up`, of everything that somebody left running."""
        await self.hang_up(*self._running)

    @property
    def generates(self) -> bool:
        return self.endpoint is not Endpoint.EMBEDDINGS

    async def _ask(self, body: Mapping[str, object], *, stream: bool) -> Asked:
        self.requests += 1
        raw, pieces = msgspec.json.encode(body), None
        if stream:
            wanted = Streaming(limit_bytes=_ANSWER_BYTES, keep_partial=False)
            raw, pieces = streamed(wanted, self.endpoint, raw)
        begun = time.monotonic()
        answer = await exchange(
            self._api,
            self.endpoint.removeprefix("/v1"),
            raw,
            before_write=lambda: True,
            pieces=pieces,
        )
        return Asked(answer=answer, took_s=time.monotonic() - begun, pieces=pieces)

    def _prompt(self, text: str) -> dict[str, Any]:
        match self.endpoint:
            case Endpoint.CHAT_COMPLETIONS:
                return {"model": self.model, "messages": [{"role": "user", "content": text}]}
            case Endpoint.COMPLETIONS:
                return {"model": self.model, "prompt": text}
            case _:
                return {"model": self.model, "input": text}

    def _few_tokens(self) -> dict[str, Any]:
        return {"max_tokens": 1} if self.generates else {}

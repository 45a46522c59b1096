"""HTTP to a server that comes and goes: a call is answered, or it is not."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

CALL_S: Final = 8.0  # a stopped server takes this call up when it goes on
AGAIN_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        value = json.loads(self.content)
        assert isinstance(value, dict)
        return value


class Caller:
    """Calls whichever server listens. `under_way` counts calls by what they are for."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._origin = ""
        self._there = asyncio.Event()
        self.under_way: Counter[str] = Counter()

    def serves_at(self, origin: str) -> None:
        """A server listens there; with an empty `origin`: none does."""
        self._origin = origin
        if origin:
            self._there.set()
        else:
            self._there.clear()

    async def call(
        self,
        what: str,
        method: str,
        path: str,
        *,
        body: object = None,
        form: aiohttp.FormData | None = None,
    ) -> Answer | None:
        """The answer, whatever it says; None when it did not come whole. Waits for a server."""
        await self._there.wait()
        self.under_way[what] += 1
        try:
            async with self._session.request(
                method, f"{self._origin}{path}", json=body, data=form
            ) as answer:
                return Answer(answer.status, await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        finally:
            self.under_way[what] -= 1

    async def until_ok(
        self, what: str, method: str, path: str, *, gone_is_ok: bool = False
    ) -> Answer:
        """Call again and again until the answer is 200 (or 404: `gone_is_ok`)."""
        while True:
            answer = await self.call(what, method, path)
            if answer is not None:
                if answer.status == 200 or (gone_is_ok and answer.status == 404):
                    return answer
                assert answer.status >= 500, f"{method} {path}: {answer.status} {answer.content!r}"
            await asyncio.sleep(AGAIN_S)


@asynccontextmanager
async def caller() -> AsyncIterator[Caller]:
    limits = aiohttp.ClientTimeout(total=CALL_S)
    async with aiohttp.ClientSession(timeout=limits) as session:
        yield Caller(session)

"""How many requests an engine runs at once, where it says so and nobody set `max_in_flight`.

llama.cpp runs as many as it has slots (four or so), and whatever is beyond those waits with it:
behind interactive requests, before them, and past the threads that it answers looks with. Its page
`/props` says how many there are, also where `/slots` and `/metrics` are off. Only who lists its
models as llama.cpp does is asked: to others the page is nothing, and some of them keep a log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from batchline.domain.errors import UpstreamError
from batchline.executor.catalogue import BackendReport, Reach
from batchline.executor.contract import BackendSettings
from batchline.executor.transport.contract import Transport

OWNER: Final = "llamacpp"  # `owned_by` of the models that it lists
PROPS: Final = "/props"  # at the root of the server, not below /v1
ANSWER_S: Final = 1.0
AGAIN_S: Final = 60.0  # it may have been started anew with others between two looks
MOST_PAGE_BYTES: Final = 8 * 1024 * 1024  # the model's chat template is on it
MOST_PLACES: Final = 1024  # more is nonsense


class _Props(msgspec.Struct):
    total_slots: int


_decode: Final = msgspec.json.Decoder(_Props).decode


def places_on(page: bytes) -> int | None:
    """The slots that a llama.cpp's `/props` tells; None where it does not (a router of several)."""
    try:
        slots = _decode(page).total_slots
    except (ValueError, RecursionError):
        return None
    return slots if 1 <= slots <= MOST_PLACES else None


class Places:
    """Asks after good looks of the catalogue, and tells `heard`: a backend and its places, or None
    where another engine answers by now.

    `transports` are made for the roots of those servers, by name, and closed by their owner.
    """

    def __init__(
        self,
        backends: Sequence[BackendSettings],
        *,
        transports: Mapping[str, Transport],
        heard: Callable[[str, int | None], None],
        clock: Callable[[], float] = time.monotonic,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._names = {backend.name for backend in backends if backend.asks_places}
        self._transports = transports
        self._heard = heard
        self._clock = clock
        self._answer_s = answer_s
        self._asked_at: dict[str, float] = {}  # of these it is known
        self._told: set[str] = set()  # that have some
        self._due: set[str] = set()
        self._is_due = asyncio.Event()

    def looked(self, report: BackendReport) -> None:
        """A look at a backend is over."""
        name = report.name
        if name not in self._names:
            return
        if report.reach is not Reach.REACHABLE:
            # What comes back may have been started otherwise; until it is asked it is as it was.
            self._asked_at.pop(name, None)
        elif OWNER in report.owners:
            if name not in self._asked_at or self._clock() >= self._asked_at[name] + AGAIN_S:
                self._due.add(name)
                self._is_due.set()
        elif report.owners:  # while it loads a model it lists none
            self._tell(name, None)

    async def ask(self) -> None:
        """Ask those that are due, all at once; who does not answer is due after the next look."""
        due, self._due = self._due, set()
        self._is_due.clear()
        await asyncio.gather(*(self._ask(name) for name in due))

    async def run(self) -> None:
        """Ask whoever is due, until cancelled."""
        while True:
            await self._is_due.wait()
            await self.ask()

    async def _ask(self, name: str) -> None:
        try:
            answer = await self._transports[name].get_json(PROPS, timeout_s=self._answer_s)
        except UpstreamError:
            return
        if answer.status == 200:
            self._asked_at[name] = self._clock()
            self._tell(name, places_on(answer.body))

    def _tell(self, name: str, places: int | None) -> None:
        if places is not None:
            self._told.add(name)
        elif name in self._told:
            self._told.discard(name)
        else:
            return  # it never had any
        self._heard(name, places)

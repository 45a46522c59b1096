"""The meters of a worker's lanes: made when something is counted, told what answers say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from batchline.domain.lines import RequestLine
from batchline.executor import messages as m
from batchline.executor.contract import BackendSettings
from batchline.executor.lane import Lane
from batchline.executor.line import Line
from batchline.executor.rate_meter import RateMeter
from batchline.executor.transport.contract import RATE_HEADERS, Answer

# What remains, of either kind: an answer without these two tells nothing that would be of use.
REMAINING_REQUESTS: Final = RATE_HEADERS[0]
REMAINING_TOKENS: Final = RATE_HEADERS[3]


class Metering:
    """One worker's. A lane without limits has no meter and pays nothing."""

    def __init__(
        self,
        backends: Sequence[BackendSettings],
        lanes: Mapping[str, Lane],
        *,
        send: Callable[[m.ToControl], None],
    ) -> None:
        self._believed = {backend.name for backend in backends if backend.rate_headers}
        self._lanes = lanes
        self._send = send
        for backend in backends:
            if backend.requests_per_minute or backend.tokens_per_minute:
                # Before the first order came nothing goes: the control process knows the limits.
                self._meter_of(lanes[backend.name]).set_rates(
                    m.SetRates(
                        backend.name,
                        requests=backend.requests_per_minute is not None,
                        tokens=backend.tokens_per_minute,
                    )
                )

    def obey(self, order: m.SetRates | m.Grant) -> Lane:
        """Do as the control process says; the lane whose lines may go now."""
        lane = self._lanes[order.backend]
        meter = self._meter_of(lane)
        if isinstance(order, m.SetRates):
            meter.set_rates(order)
        else:
            meter.granted(order)
        return lane

    def heard(self, lane: Lane, line: Line, answer: Answer) -> None:
        """`answer` tells of limits."""
        if lane.backend in self._believed:
            self._meter_of(lane).heard(line, answer.headers)

    def _meter_of(self, lane: Lane) -> RateMeter:
        if lane.rates is None:
            loop = asyncio.get_running_loop()
            lane.rates = RateMeter(
                lane.backend,
                send=self._send,
                read=_request_of,
                clock=loop.time,
                later=loop.call_later,
            )
        return lane.rates


def _request_of(line: Line) -> RequestLine | None:
    """For an estimate of what it takes, before it is read to be sent."""
    return line.run.requests.peek(line.index)

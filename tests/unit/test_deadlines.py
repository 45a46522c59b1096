"""One timer for many deadlines: everything late is told once, nothing early, nothing removed."""

from __future__ import annotations

import asyncio

from batchline.executor.transport.deadlines import Deadlines


async def test_each_is_told_once_in_whatever_order_it_was_added() -> None:
    loop = asyncio.get_running_loop()
    told: list[tuple[str, float]] = []
    all_told = asyncio.Event()

    def late(what: str) -> None:
        told.append((what, loop.time()))
        if len(told) == 3:
            all_told.set()

    deadlines: Deadlines[str] = Deadlines(loop, late)
    began = loop.time()
    ends = {"third": began + 0.06, "first": began + 0.02, "second": began + 0.04}
    for what, when in ends.items():
        deadlines.add(what, when)
    deadlines.add("removed", began + 0.03)
    deadlines.remove("removed")
    await all_told.wait()

    assert [what for what, _ in told] == ["first", "second", "third"]
    assert all(when >= ends[what] - 0.002 for what, when in told)  # uvloop's timers: milliseconds
    assert len(deadlines) == 0


async def test_one_that_is_added_while_another_is_told_is_told_too() -> None:
    loop = asyncio.get_running_loop()
    told: list[int] = []
    over = asyncio.Event()

    def late(what: int) -> None:
        told.append(what)
        if what < 3:
            deadlines.add(what + 1, loop.time())
        else:
            over.set()

    deadlines: Deadlines[int] = Deadlines(loop, late)
    deadlines.add(0, loop.time())
    await over.wait()
    assert told == [0, 1, 2, 3]


async def test_a_steady_stream_keeps_one_timer_for_all() -> None:
    loop = asyncio.get_running_loop()
    deadlines: Deadlines[int] = Deadlines(loop, lambda _: None)
    deadlines.add(0, loop.time() + 60)
    timer = deadlines._timer  # the point of the class: no timer of its own for each
    for number in range(1, 1_000):
        deadlines.add(number, loop.time() + 60)
        deadlines.remove(number)
    assert deadlines._timer is timer
    deadlines.close()
    assert timer is not None
    assert timer.cancelled()


async def test_nothing_is_told_after_the_close() -> None:
    loop = asyncio.get_running_loop()
    told: list[int] = []
    deadlines: Deadlines[int] = Deadlines(loop, told.append)
    deadlines.add(1, loop.time() + 0.01)
    deadlines.close()
    await asyncio.sleep(0.03)
    assert told == []

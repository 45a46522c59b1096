"""Real workers that are more than their backend takes requests at once."""

from __future__ import annotations

from pathlib import Path

from tests.contract.test_local_executor import ONE, TWO, rig
from tests.support.inputs import line_id
from tests.support.scripted_backend import Answer, Script

HELD_LINE = 0
# In a turn of a second there are 20 lines at 50 ms each, one at a time.
MORE_THAN_A_TURN = 40
LINES = 1_000


async def test_one_long_request_holds_up_nobody_whose_lines_could_go(tmp_path: Path) -> None:
    """Two permits and three workers. If this fails, the worker that has the other permit while a
    request takes long keeps it for as long as that, and a third has none."""
    script = Script(answer=Answer(latency_s=0.05), by_id={line_id(HELD_LINE): (Answer(hold=True),)})
    async with rig(tmp_path, script, workers=3, max_in_flight=2) as it:
        first, second, third = it.workers()
        held = it.open(it.work(ONE, 1, number=HELD_LINE), worker=first)
        await it.backend.wait_until(min_held=1)
        others = [
            it.open(it.work(TWO, LINES, number=number), worker=worker)
            for number, worker in ((1, second), (2, third))
        ]
        for key in others:
            await it.events.until(lambda key=key: it.events.completed(key) > MORE_THAN_A_TURN)  # type: ignore[misc]
        assert held not in it.events.released
        stats = await it.backend.stats()
        assert (stats.held, stats.max_in_flight) == (1, 2)

"""Power cuts: after any of them, whatever was answered is there and everything comes to its end.

`make power SEED=7 N=500` makes it longer and repeats one. What a disk may hold after a power cut is
decision 0013; a real server's calls are recorded once, and played up to many places.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support.power_loss import checks
from tests.support.power_loss.job import SCRIPT, Recorded, record, settings
from tests.support.power_loss.survival import CORNERS, Survival, drawn
from tests.support.power_loss.told import Told, told
from tests.support.scripted_backend import backend_process
from tests.support.server import server

SEED: Final = int(os.environ.get("BATCHLINE_SEED") or random.SystemRandom().randrange(2**32))
IMAGES: Final = int(os.environ.get("BATCHLINE_IMAGES") or 50)  # with a server, in the long one

QUICK_PLACES: Final = 60
QUICK_STARTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A power cut at a place of the recording; `start`: a server shall go on from there."""

    place: int
    survival: Survival
    start: bool


@dataclass(slots=True)
class Done:
    """What a campaign looked at."""

    images: int = 0
    starts: int = 0
    ended: Counter[str] = field(default_factory=Counter)


@pytest.mark.timeout(180)  # a few seconds, unless the machine is very busy
async def test_a_power_cut_takes_nothing_that_was_answered(tmp_path: Path) -> None:
    chance = _chance(SEED)
    async with backend_process(SCRIPT) as backend:
        recorded = record(tmp_path, backend.base_url, restarts=False)
        # The hardest moments: an answer is out, and nothing more came to the disk.
        answered = [answer.place + 1 for answer in recorded.answers]
        elsewhere = chance.choices(recorded.recording.busy_places(), k=QUICK_PLACES)
        cuts = [
            *(Cut(place=place, survival=CORNERS[0], start=False) for place in answered),
            *(
                Cut(place=place, survival=survival, start=False)
                for place in elsewhere
                for survival in (chance.choice(CORNERS), drawn(chance))
            ),
            *(
                Cut(place=place, survival=drawn(chance), start=True)
                for place in elsewhere[:QUICK_STARTS]
            ),
        ]
        done = _cut_power(recorded, cuts, tmp_path, backend.base_url, chance)
    _say(done, recorded)
    assert done.starts == QUICK_STARTS


@pytest.mark.power
@pytest.mark.timeout(180 + 10 * IMAGES)
async def test_power_cuts_through_three_lives_of_a_server(tmp_path: Path) -> None:
    chance = _chance(SEED)
    async with backend_process(SCRIPT) as backend:
        recorded = record(tmp_path, backend.base_url, restarts=True)
        answered = [answer.place + 1 for answer in recorded.answers]
        busy = recorded.recording.busy_places()
        cuts = []
        for number in range(IMAGES):
            place = chance.choice(answered if number % 3 == 0 else busy)
            survivals = [*CORNERS, drawn(chance), drawn(chance)]
            started = chance.choice(survivals)
            cuts += [
                Cut(place=place, survival=survival, start=survival is started)
                for survival in survivals
            ]
        done = _cut_power(recorded, cuts, tmp_path, backend.base_url, chance)
    _say(done, recorded)
    assert done.starts == IMAGES


def _cut_power(
    recorded: Recorded,
    cuts: Sequence[Cut],
    directory: Path,
    base_url: str,
    chance: random.Random,
) -> Done:
    """Make the image of each cut and check it."""
    player = recorded.recording.player()
    player.go_to(recorded.recording.end)
    ever = {path.name: content for path, content in player.files.ever().items()}
    player = recorded.recording.player()
    done = Done()
    for cut in sorted(cuts, key=lambda cut: cut.place):
        player.go_to(cut.place)
        known = told(recorded.answers, cut.place)
        disk = directory / "image"
        disk.mkdir()
        checks.write_image(player.files.after_power_cut(cut.survival, chance), disk)
        try:
            _check(disk, cut, known, recorded, ever, base_url, done)
        except BaseException as exc:
            exc.add_note(f"seed {SEED}, {cut}, of {recorded.recording.end} places")
            raise
        shutil.rmtree(disk)
    return done


def _check(
    disk: Path,
    cut: Cut,
    known: Told,
    recorded: Recorded,
    ever: dict[str, bytes],
    base_url: str,
    done: Done,
) -> None:
    done.images += 1
    if not cut.start:
        checks.look(disk / "data", known, recorded, ever)
        return
    done.starts += 1
    with server(disk, settings=settings(base_url)) as running:
        done.ended.update(checks.go_on(running, known, recorded).values())


def _chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  # moments, not secrets


def _say(done: Done, recorded: Recorded) -> None:
    print(  # noqa: T201  # the record of a run; pytest shows it on failure or -s
        f"\nseed {SEED}: {len(recorded.recording.calls)} calls, {len(recorded.answers)} answers; "
        f"{done.images} images, {done.starts} of them with a server; batches ended {done.ended}",
        flush=True,
    )

"""Power cuts during `batchline run`: the same command goes on, and what was said stays true."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.support import command
from tests.support.inputs import line_id, make_lines
from tests.support.power_loss.checks import look_at_bytes, write_image
from tests.support.power_loss.recording import Recording, under_strace, wait_recorded
from tests.support.power_loss.survival import CORNERS, drawn
from tests.support.scripted_backend import Answer, BackendControl, Script, backend_process

SEED: Final = int(os.environ.get("BATCHLINE_SEED") or random.SystemRandom().randrange(2**32))
LINES: Final = 100
PLACES: Final = 12  # while it runs, and as many while it ends
STARTS: Final = 2
SAID: Final = b"lines succeeded"
REFUSED: Final = line_id(LINES // 2)
SCRIPT: Final = Script(answer=Answer(latency_s=0.005, latency_max_s=0.03))

OUTPUT: Final = "out.jsonl"
ERRORS: Final = "out.errors.jsonl"
STATE: Final = f".{OUTPUT}.batchline"


def words(disk: Path, backend: BackendControl) -> list[str]:
    config = disk.parent / "run.toml"
    config.write_text("[worker]\ncommit_interval_s = 0.03\n[disk]\nreserve_bytes = 4096\n")
    options = ["--config", config, "--output", disk / OUTPUT, "--upstream", backend.base_url]
    return ["run", *map(str, [disk.parent / "in.jsonl", *options])]


# Without an error line the error file is made and removed, and with that the folder synced again.
@pytest.mark.timeout(180)  # a few seconds, unless the machine is very busy
@pytest.mark.parametrize("refused", [(), (REFUSED,)], ids=["no error line", "one error line"])
async def test_a_run_goes_on_after_a_power_cut_and_what_it_said_stays(
    tmp_path: Path, refused: tuple[str, ...]
) -> None:
    script = replace(SCRIPT, by_id={name: (Answer(status=422),) for name in refused})
    files = {OUTPUT, ERRORS} if refused else {OUTPUT}
    chance = random.Random(SEED)  # noqa: S311  # moments, not secrets
    (tmp_path / "in.jsonl").write_bytes(make_lines(LINES))
    disk, trace = tmp_path / "disk", tmp_path / "trace"
    disk.mkdir()
    async with backend_process(script) as backend:
        program = [*under_strace(trace), *command.MODULE, *words(disk, backend)]
        ran = subprocess.run(program, check=False, capture_output=True, timeout=30)
        assert ran.returncode == len(refused), ran.stderr
        wait_recorded(trace)
        recording = Recording.of([trace], disk)
        said = recording.place_of(SAID)
        player = recording.player()
        player.go_to(recording.end)
        ever = {path.name: content for path, content in player.files.ever().items()}
        assert {str(path) for path in player.files.now()} == files

        busy = recording.busy_places()
        ending = [place for place in busy if place > said]
        places = [*chance.choices(busy, k=PLACES), *chance.choices(ending, k=PLACES)]
        places.append(said + 1)  # when it has just said so: what comes next may sync the same
        started = set(chance.sample(places, k=STARTS))
        player = recording.player()
        for place in sorted(places):
            player.go_to(place)
            for survival in (CORNERS[0], chance.choice(CORNERS[1:]), drawn(chance)):
                image = tmp_path / "image"
                image.mkdir()
                write_image(player.files.after_power_cut(survival, chance), image)
                try:
                    _look(image, ever, files, over=place > said)
                    if place in started and survival not in CORNERS:
                        started.discard(place)
                        await _go_on(image, backend, files, over=place > said)
                except BaseException as exc:
                    exc.add_note(f"seed {SEED}, {survival} at {place} of {recording.end}")
                    raise
                shutil.rmtree(image)


def _look(disk: Path, ever: dict[str, bytes], files: set[str], *, over: bool) -> None:
    """`over`: it has said that everything is done."""
    state = disk / STATE
    if over:
        there = {name: (disk / name).read_bytes() for name in files}
        assert there == {name: ever[name] for name in files}, "other files than were announced"
        assert (disk / ERRORS).exists() is (ERRORS in files), "an error file without an error"
        assert not state.exists() or (state / "batchline.sqlite3").exists(), (
            "half of a run would be taken for one that goes on"
        )
    if (state / "batchline.sqlite3").exists():
        with closing(sqlite3.connect(state / "batchline.sqlite3")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'batch'").fetchall():
                look_at_bytes(database, state, ever)
                statuses = database.execute("SELECT status FROM batch").fetchall()
                assert not over or statuses == [("completed",)]


async def _go_on(disk: Path, backend: BackendControl, files: set[str], *, over: bool) -> None:
    """The same command, once more."""
    before = (await backend.stats()).arrivals
    ran = await command.command(*words(disk, backend))
    if over:
        assert (await backend.stats()).arrivals == before, "what was done is sent again"
    there = set(os.listdir(disk))  # noqa: PTH208  # in an async function it is that or a thread
    if ran.returncode == 2:
        # All was done. What was being removed goes with the next run into this place.
        assert "exists already" in ran.stderr
        there.discard(f"{STATE}.removed")
    else:
        assert ran.returncode == len(files) - 1, ran.stderr
    lines = [line for name in sorted(files) for line in (disk / name).read_bytes().splitlines()]
    results = [json.loads(line) for line in lines]
    assert sorted(one["custom_id"] for one in results) == [line_id(n) for n in range(LINES)]
    assert there == files

"""Servers of several models that lack one for a while, and models that come up elsewhere.

Where lines must not wear out the tests allow one attempt, so that a single one used would fail a
line.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.e2e.test_progress import progress_when
from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, BackendControl, Kind, Script, backend_process
from tests.support.server import ServerProcess, conserved, content_of, server, submit, wait_for

BOTH: Final = ("alpha", "beta")
HOLDING: Final = Script(answer=Answer(hold=True))
TWO_WORKERS: Final = ["--workers", "2"]
PERMITS: Final = 8
LONG_S: Final = 40.0  # a busy machine


def listing(*models: str) -> Answer:
    """A catalogue of `models`."""
    data = [{"id": model, "object": "model"} for model in models]
    return Answer(body=json.dumps({"object": "list", "data": data}))


ALL_THERE: Final = Script(models=BOTH)
ALPHA_AWAY: Final = Script(models=("beta",), models_answer=listing(*BOTH))


def settings_of(
    backends: Mapping[str, BackendControl], *, attempts: int = 1, permits: int = PERMITS
) -> dict[str, Any]:
    return {
        "retry": {"max_attempts": attempts, "base_s": 0.01},
        "shutdown": {"grace_s": 0},
        "backend": [
            {"name": name, "base_url": one.base_url, "max_in_flight": permits, "health_s": 0.2}
            for name, one in backends.items()
        ],
    }


def waits_for_a_model(progress: dict[str, Any]) -> bool:
    return [wait["code"] for wait in progress["waiting"]] == ["model_away"]


def waits_for_a_listing(progress: dict[str, Any]) -> bool:
    return [wait["code"] for wait in progress["waiting"]] == ["model_unlisted"]


def reason_of(running: ServerProcess, name: str) -> tuple[str, str | None]:
    """State and reason of a backend, as `batchline backends list` has them."""
    shown = running.command("backends", "list", "--json")
    assert shown.returncode == 0, shown.stderr
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    (one,) = [one for one in found if one["name"] == name]
    return one["state"], one["reason"]


async def test_a_model_that_is_away_holds_up_its_own_lines_only_also_over_deaths(
    tmp_path: Path,
) -> None:
    async with backend_process(ALPHA_AWAY) as backend:
        settings = settings_of({"both": backend})
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            first = make_lines(1_100, model="alpha")
            alpha = submit(client, first)
            stuck = await progress_when(running, alpha.id, waits_for_a_model)
            (wait,) = stuck["waiting"]
            assert (wait["code"], wait["backend"]) == ("model_away", "both")
            away = "does not have model alpha at the moment (status 404)"
            assert wait["message"].startswith(f"backend both {away}")
            assert stuck["expected_end_at"] is None
            state, reason = reason_of(running, "both")
            assert (state, str(reason).startswith(away)) == ("up", True)

            content = make_lines(600, model="beta", start=10_000)
            beta = submit(client, content)
            ended = wait_for(client, beta.id, timeout_s=LONG_S)
            assert conserved(client, ended, content).finished == 600
            assert client.batches.retrieve(alpha.id).status == "in_progress"
            missed = Counter(event.status for event in (await backend.log()).of(Kind.ANSWERED))
            assert missed[404] < 10 * PERMITS  # of 3,000 lines: what was in flight, and trials

            assert running.terminate() == 0
            running.start()
            client = running.client()
            await progress_when(running, alpha.id, waits_for_a_model)
            running.signal_workers(signal.SIGKILL)
            await backend.set_script(ALL_THERE)
            ended = wait_for(client, alpha.id, timeout_s=LONG_S)
            assert conserved(client, ended, first).finished == 1_100
            assert (await backend.stats()).max_in_flight <= PERMITS


async def test_in_one_batch_lines_of_other_models_go_on_behind_those_that_wait(
    tmp_path: Path,
) -> None:
    """If this fails, the shards that wait are all that the worker has room for."""
    names = ("aleph", "alpha", "beta")
    two_away = Script(models=("beta",), models_answer=listing(*names))
    async with backend_process(two_away) as backend:
        settings = settings_of({"three": backend}) | {"allow_mixed_models": True}
        with server(tmp_path, settings=settings, options=["--workers", "1"]) as running:
            client = running.client()
            parts = [make_lines(50, model=one, start=at * 100) for at, one in enumerate(names)]
            content = b"".join(parts)
            batch = submit(client, content)
            stuck = await progress_when(
                running,
                batch.id,
                lambda now: now["request_counts"]["completed"] == 50 and len(now["waiting"]) == 2,
            )
            assert {wait["code"] for wait in stuck["waiting"]} == {"model_away"}
            await backend.set_script(Script(models=names))
            ended = wait_for(client, batch.id, timeout_s=LONG_S)
            assert conserved(client, ended, content).finished == 150


async def test_lines_of_a_model_that_one_replica_lost_go_to_the_other(tmp_path: Path) -> None:
    async with backend_process(ALPHA_AWAY) as lost, backend_process(ALL_THERE) as has:
        settings = settings_of({"lost": lost, "has": has})
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            content = make_lines(1_100, model="alpha")
            ended = wait_for(client, submit(client, content).id)
            assert conserved(client, ended, content).finished == 1_100
            assert (await lost.stats()).arrivals < 6 * PERMITS
            assert (await has.stats()).max_in_flight <= PERMITS


async def test_a_backend_that_turns_out_not_to_have_a_model_that_another_lists_fails_no_line(
    tmp_path: Path,
) -> None:
    """It lists nothing, as some gateways do, and may have anything until it says otherwise."""
    secretive = Script(models=("other",), models_answer=Answer(status=500))
    async with backend_process(secretive) as without, backend_process(HOLDING) as has:
        settings = settings_of({"without": without, "has": has})
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            content = make_lines(300)
            batch = submit(client, content)
            await without.wait_for_arrivals(1, timeout_s=LONG_S)
            await has.stop_holding()
            ended = wait_for(client, batch.id)
            assert conserved(client, ended, content).finished == 300


async def test_a_batch_whose_model_is_away_is_cancelled_like_any_other(tmp_path: Path) -> None:
    async with backend_process(ALPHA_AWAY) as backend:
        settings = settings_of({"both": backend}) | {"cancel": {"grace_s": 0}}
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            content = make_lines(1_100, model="alpha")
            batch = submit(client, content)
            await progress_when(running, batch.id, waits_for_a_model)
            client.batches.cancel(batch.id)
            before = (await backend.stats()).arrivals
            await backend.set_script(ALL_THERE)
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            assert conserved(client, ended, content).finished == 0
            # Whoever has lines of it next finds it there, and does not wait for a trial.
            again = make_lines(50, model="alpha", start=10_000)
            done = wait_for(client, submit(client, again).id)
            assert conserved(client, done, again).finished == 50
            assert (await backend.stats()).arrivals <= before + PERMITS + 50


async def test_a_running_batch_goes_on_at_a_backend_that_lists_its_model_later(
    tmp_path: Path,
) -> None:
    """All of it is in a worker's hands by then. If this fails, a replica that comes up in the
    middle has nothing to do until shards are handed out anew."""
    other = replace(HOLDING, models=("other",))
    async with backend_process(HOLDING) as first, backend_process(other) as late:
        settings = settings_of({"first": first, "late": late}, permits=4)
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            content = make_lines(300)
            batch = submit(client, content)
            await first.wait_until(min_held=4, timeout_s=LONG_S)
            assert (await late.stats()).arrivals == 0
            await late.set_script(HOLDING)
            assert (await late.wait_until(min_held=4, timeout_s=LONG_S)).held == 4
            for backend in (first, late):
                await backend.stop_holding()
            ended = wait_for(client, batch.id)
            assert conserved(client, ended, content).finished == 300
            arrivals = [event.id for one in (first, late) for event in (await one.log()).arrivals]
            assert max(Counter(arrivals).values()) == 1


async def test_what_is_not_handed_out_waits_for_a_model_that_nobody_lists_any_more(
    tmp_path: Path,
) -> None:
    """Also after a restart, when nobody has listed it for as long as the server knows."""
    gone = replace(ALL_THERE, models_answer=listing("beta"))
    lines = 2_100  # two shards of a thousand are in the worker's hands, and one is not
    async with backend_process(replace(HOLDING, models=BOTH)) as backend:
        settings = settings_of({"only": backend})
        with server(tmp_path, settings=settings, options=["--workers", "1"]) as running:
            client = running.client()
            content = make_lines(lines, model="alpha")
            batch = submit(client, content)
            await backend.wait_until(min_held=PERMITS, timeout_s=LONG_S)
            await backend.set_script(replace(gone, answer=Answer(hold=True)))
            running.wait_readiness(lambda body: body["backends"][0]["models"] == ["beta"])
            await backend.set_script(gone)
            await backend.stop_holding()
            stuck = await progress_when(running, batch.id, waits_for_a_listing)
            assert stuck["request_counts"]["failed"] == 0
            assert 0 < stuck["request_counts"]["completed"] < lines

            assert running.terminate() == 0
            running.start()
            stuck = await progress_when(running, batch.id, waits_for_a_listing)
            (wait,) = stuck["waiting"]
            assert wait["message"].startswith("no backend lists model alpha any more")
            await backend.set_script(ALL_THERE)
            client = running.client()
            ended = wait_for(client, batch.id, timeout_s=LONG_S)
            assert conserved(client, ended, content).finished == lines


async def test_what_a_backend_will_never_do_is_the_lines_answer_at_once(tmp_path: Path) -> None:
    async with backend_process(Script(answer=Answer(status=501))) as backend:
        settings = settings_of({"only": backend}, attempts=5)
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            content = make_lines(20)
            ended = wait_for(client, submit(client, content).id)
            assert conserved(client, ended, content).failed == 20
            errors = (content_of(client, ended.error_file_id) or b"").splitlines()
            assert {json.loads(line)["response"]["status_code"] for line in errors} == {501}
            assert (await backend.stats()).arrivals == 20


async def test_what_one_backend_will_never_do_is_asked_of_another(tmp_path: Path) -> None:
    unable = Script(answer=Answer(status=501))
    async with backend_process(unable) as without, backend_process(HOLDING) as able:
        settings = settings_of({"without": without, "able": able}, attempts=5)
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            content = make_lines(60)
            batch = submit(client, content)
            await without.wait_for_arrivals(1, timeout_s=LONG_S)
            await able.stop_holding()
            ended = wait_for(client, batch.id)
            assert conserved(client, ended, content).finished == 60
            log = await without.log()
            assert set(log.attempts().values()) == {1}
            assert "backend_gated" not in running.log.read_text()

"""Servers that come back and fail whatever they are tried with: a model that does not load, or a
line that is too much. The first is waited for; the second is not tried for ever (decision 0037).

One attempt is allowed, so that a single one used fails its line.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.test_models_away import (
    ALL_THERE,
    ALPHA_AWAY,
    LONG_S,
    settings_of,
    waits_for_a_model,
)
from tests.e2e.test_progress import progress_when
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import Answer, Kind, backend_process
from tests.support.server import conserved, server, submit, wait_for

TWO_WORKERS = ["--workers", "2"]
LINES = 200
NOT_LOADED = replace(ALL_THERE, answer=Answer(status=500))
AWAY = {"model_away": ALPHA_AWAY, "backend_shed": replace(ALL_THERE, answer=Answer(status=503))}
FAILING = {"model_away": "model_away", "backend_shed": "backend_failing"}


@pytest.mark.parametrize("code", AWAY)
async def test_a_server_that_cannot_load_its_model_fails_no_line(tmp_path: Path, code: str) -> None:
    async with backend_process(AWAY[code]) as backend:
        settings = settings_of({"only": backend})
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            content = make_lines(LINES, model="alpha")
            batch = submit(client, content)
            await progress_when(
                running, batch.id, lambda now: [w["code"] for w in now["waiting"]] == [code]
            )
            await backend.wait_until(min_answered=1, in_flight=0, timeout_s=LONG_S)
            before = (await backend.stats()).answered
            await backend.set_script(NOT_LOADED)
            await backend.wait_until(min_answered=before + 3, timeout_s=LONG_S)
            failing = await progress_when(
                running, batch.id, lambda now: "status 500" in str(now["waiting"])
            )
            assert [wait["code"] for wait in failing["waiting"]] == [FAILING[code]]
            assert failing["request_counts"]["failed"] == 0
            await backend.set_script(ALL_THERE)
            ended = wait_for(client, batch.id, timeout_s=LONG_S)
            assert conserved(client, ended, content).finished == LINES


async def test_errors_are_the_lines_answers_once_they_were_waited_for_long_enough(
    tmp_path: Path,
) -> None:
    async with backend_process(ALPHA_AWAY) as backend:
        settings = settings_of({"only": backend})
        settings["retry"]["trial_patience_s"] = 1.0
        with server(tmp_path, settings=settings, options=TWO_WORKERS) as running:
            client = running.client()
            content = make_lines(LINES, model="alpha")
            batch = submit(client, content)
            await progress_when(running, batch.id, waits_for_a_model)
            await backend.set_script(NOT_LOADED)
            ended = wait_for(client, batch.id, timeout_s=LONG_S)
            assert conserved(client, ended, content).failed == LINES
            assert "errors_believed" in running.log.read_text()


async def test_a_line_that_its_server_cannot_take_fails_alone(tmp_path: Path) -> None:
    """It tries the model first, and the others do after it. If this fails, they wait for it."""
    bad = line_id(0)
    async with backend_process(ALPHA_AWAY) as backend:
        with server(tmp_path, settings=settings_of({"only": backend})) as running:
            client = running.client()
            content = make_lines(LINES, model="alpha")
            batch = submit(client, content)
            await progress_when(running, batch.id, waits_for_a_model)
            await backend.set_script(replace(ALL_THERE, by_id={bad: (Answer(status=500),)}))
            ended = wait_for(client, batch.id, timeout_s=LONG_S)
            summary = conserved(client, ended, content)
            assert (summary.finished, summary.failed) == (LINES - 1, 1)
            failed = [e for e in (await backend.log()).of(Kind.ANSWERED) if e.status == 500]
            assert {event.id for event in failed} == {bad}

"""`batchline probe` against simulated engines, each with a habit of its own about closes."""

from __future__ import annotations

import asyncio
import json
import re
import socket

import pytest

from batchline.cli.outcome import FAILED, UNREACHABLE, USAGE, CommandFailed
from batchline.cli.probe import probing
from batchline.cli.probe.probing import Found
from batchline.cli.probe.target import MAX_REQUESTS, Pace, Target
from batchline.cli.probe.verdicts import Verdict
from batchline.config.backends import backend_at
from batchline.executor.contract import CancelBy
from tests.support.command import command
from tests.support.engine import MODEL, Engine, Habits, engine

# The real one is for models that take 20 ms a token; these here take 10.
QUICK = Pace(
    poll_s=0.05,
    left_alone_s=1.0,
    least_left_alone_s=0.4,
    closed_after_s=0.1,
    refused_within_s=0.1,
    starts_within_s=2.0,
    settles_within_s=2.0,
    busy_after_s=0.3,
    short_most_s=1.0,
    pause_s=0.15,
    hard_close_after_s=0.03,
    answers_within_s=1.0,
    up_again_s=0.05,
    last_steps_s=2.0,
)
PROVEN, REFUTED, UNKNOWN = Verdict.PROVEN, Verdict.REFUTED, Verdict.UNKNOWN


async def probed(one: Engine, *, timeout_s: float = 30.0, model: str | None = None) -> Found:
    target = Target(backend_at(one.url), timeout_s=timeout_s, pace=QUICK)
    try:
        return await probing.probe(target, model=model)
    finally:
        await target.close()


@pytest.mark.parametrize(
    ("habits", "whole", "streamed"),
    [
        (Habits(), PROVEN, PROVEN),
        (Habits(metrics="sglang", notices=frozenset({"stream"})), REFUTED, PROVEN),
        (Habits(notices=frozenset()), UNKNOWN, REFUTED),
        (Habits(metrics="slots", streams=False), PROVEN, UNKNOWN),
        (Habits(streams=False, notices=frozenset()), REFUTED, UNKNOWN),
        # Their generations end by themselves, but later than what is closed.
        (Habits(max_tokens=70), PROVEN, PROVEN),
        (Habits(refuses=frozenset({"ignore_eos", "stream_options"})), PROVEN, UNKNOWN),
        (Habits(endpoints=frozenset({"/v1/completions"}), streams=False), PROVEN, UNKNOWN),
    ],
    ids=[
        "stops",
        "only streams",
        "never",
        "whole only",
        "whole never",
        "short ones",
        "strict",
        "completions",
    ],
)
async def test_with_metrics_it_is_known_whether_a_close_stops_the_generation(
    habits: Habits, whole: Verdict, streamed: Verdict
) -> None:
    async with engine(habits) as one:
        found = await probed(one)
        assert (found.whole.verdict, found.streamed.verdict) == (whole, streamed), found
        assert found.broken is None
        assert found.closes >= 20
        assert one.requests <= found.requests <= MAX_REQUESTS


async def test_a_generation_that_ends_by_itself_is_not_taken_for_stopped() -> None:
    async with engine(Habits(max_tokens=70, streams=False, notices=frozenset())) as one:
        found = await probed(one)
        assert found.whole.verdict is REFUTED, found


@pytest.mark.parametrize(
    ("notices", "verdict"),
    [(frozenset({"whole"}), PROVEN), (frozenset[str](), REFUTED)],
    ids=["stops", "never"],
)
async def test_without_metrics_what_others_wait_tells(
    notices: frozenset[str], verdict: Verdict
) -> None:
    async with engine(Habits(metrics=None, streams=False, notices=notices)) as one:
        found = await probed(one)
        assert found.whole.verdict is verdict, found
        assert "by waiting" in found.whole.evidence
        assert one.requests <= found.requests <= MAX_REQUESTS


@pytest.mark.parametrize(
    ("habits", "why"),
    [
        (Habits(metrics=None, places=100, streams=False), "do not make a short request wait"),
        (Habits(max_tokens=12, streams=False), "/metrics|its longest generation takes only"),
        (Habits(endpoints=frozenset({"/v1/embeddings"})), "not generated token by token"),
    ],
    ids=["roomy", "too short", "embeddings"],
)
async def test_what_cannot_be_known_is_not_claimed(habits: Habits, why: str) -> None:
    async with engine(habits) as one:
        found = await probed(one)
        assert (found.whole.verdict, found.broken) == (UNKNOWN, None), found
        assert re.search(why, found.whole.evidence)
        assert found.requests <= MAX_REQUESTS


async def test_other_requests_are_not_taken_for_ours() -> None:
    """Somebody else's request ends just when ours was closed, on a backend that stops nothing."""
    async with engine(Habits(notices=frozenset(), streams=False)) as one:

        async def others() -> None:
            while True:
                await asyncio.sleep(0.4)
                one.running += 1
                await asyncio.sleep(0.4)
                one.running -= 1

        busy = asyncio.create_task(others())
        found = await probed(one)
        busy.cancel()
        assert found.whole.verdict is UNKNOWN, found


async def test_time_that_is_up_leaves_what_was_not_finished_unknown() -> None:
    async with engine(Habits()) as one:
        found = await probed(one, timeout_s=2.5)
        assert (found.streamed.verdict, found.whole.verdict) == (UNKNOWN, UNKNOWN)
        assert "used up" in found.streamed.evidence


async def test_a_backend_that_closes_break_is_called_broken() -> None:
    async with engine(Habits(breaks_after=9, streams=False)) as one:
        found = await probed(one, timeout_s=8.0)
        assert found.broken is not None
        assert probing.advice(found).cancel is CancelBy.DRAIN


async def test_a_model_is_asked_for_by_name() -> None:
    async with engine(Habits(endpoints=frozenset({"/v1/embeddings"}))) as one:
        assert (await probed(one, model="other")).model == "other"
        assert (await probed(one)).model == MODEL


async def test_nothing_that_serves_the_model_is_a_failure() -> None:
    async with engine(Habits(endpoints=frozenset())) as one:
        with pytest.raises(CommandFailed, match="serves no request for simulated") as caught:
            await probed(one)
        assert caught.value.exit_code == FAILED


# -- the command -------------------------------------------------------------------------------


async def test_the_command_prints_what_was_found_and_the_settings() -> None:
    async with engine(Habits(max_tokens=200, streams=False, key="Bearer k1")) as one:
        words = ("probe", one.url, "--api-key-env", "PROBE_KEY", "--json")
        ran = await command(*words, env={"PROBE_KEY": "k1"}, timeout_s=60)
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)
        assert told["engine"] == "vLLM"
        assert told["close_whole"]["verdict"] == "proven"
        assert told["settings"] == {
            "cancel": "close",
            "stops_on_close": True,
            "stream": False,
            "max_in_flight": None,
        }
        refused = await command("probe", one.url)
        assert refused.returncode == USAGE
        assert (
            "refuses the key (status 401); name its variable with --api-key-env" in refused.stderr
        )


async def test_what_is_no_backend_is_said_so() -> None:
    async with engine(Habits(garbage=True)) as one:
        ran = await command("probe", one.url)
        assert ran.returncode == UNREACHABLE
        assert "something answers there, but it lists its models in a form" in ran.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ran = await command("probe", f"127.0.0.1:{taken.getsockname()[1]}")
        assert ran.returncode == UNREACHABLE
        assert "no backend answers" in ran.stderr
    assert (await command("probe", "ftp://x")).returncode == USAGE

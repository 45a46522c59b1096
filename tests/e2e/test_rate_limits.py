"""Backends that count requests or tokens by the minute: no more goes than they let through.

The windows of the backend are short: it holds a second of its allowance, not a minute. Who would
send what is allowed in a burst is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import Answer, BackendLog, Kind, Rate, Script, backend_process
from tests.support.server import conserved, server, submit, wait_for

ONE_ATTEMPT: Final = {"retry": {"max_attempts": 1}}
PER_S: Final = 20
TOKENS_EACH: Final = 18  # what the scripted backend says that each answer used


def statuses(log: BackendLog) -> dict[int, int]:
    """How many requests were answered with each status."""
    found: dict[int, int] = {}
    for event in log.of(Kind.ANSWERED):
        found[event.status] = found.get(event.status, 0) + 1
    return found


def limited(base_url: str, **limits: Any) -> dict[str, Any]:
    """Settings of one backend; a refusal that used an attempt would fail its line."""
    return ONE_ATTEMPT | {"backend": [{"base_url": base_url, **limits}]}


@pytest.mark.parametrize(
    ("limits", "cost"),
    [
        ({"requests_per_minute": PER_S * 60}, 1.0),
        ({"tokens_per_minute": PER_S * TOKENS_EACH * 60}, float(TOKENS_EACH)),
    ],
    ids=["requests", "tokens, guessed far too high"],
)
async def test_two_workers_and_a_restart_send_no_more_than_is_allowed(
    tmp_path: Path, limits: dict[str, int], cost: float
) -> None:
    content = make_lines(60)
    rate = Rate(per_s=PER_S * cost, holds=PER_S * cost, at_start=PER_S * cost, cost=cost)
    async with backend_process(Script(rate=rate)) as backend:
        settings = limited(backend.base_url, **limits)
        with server(tmp_path, settings=settings, options=["--workers", "2"]) as running:
            client = running.client()
            batch = submit(client, content)
            body = running.wait_readiness(
                lambda body: str(body["backends"][0]["reason"]).startswith("is at its rate limit")
            )
            assert body["backends"][0]["state"] == "up"
            await backend.wait_for_arrivals(15)
            running.kill()
            running.start()
            client = running.client()
            ended = wait_for(client, batch.id)
            assert ended.status == "completed"
            log = await backend.log()
            assert conserved(client, ended, content).finished == 60
    assert set(statuses(log)) == {200}


async def test_a_limit_that_only_answers_tell_of_is_kept(tmp_path: Path) -> None:
    content = make_lines(80)
    rate = Rate(per_s=PER_S, holds=PER_S * 60, at_start=40, tells="requests")
    async with backend_process(Script(rate=rate, answer=Answer(latency_s=0.05))) as backend:
        settings = limited(backend.base_url, max_in_flight=4)
        with server(tmp_path, settings=settings, options=["--workers", "2"]) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            log = await backend.log()
            assert conserved(client, ended, content, log).finished == 80
    assert statuses(log) == {200: 80}


async def test_answers_are_not_believed_where_the_settings_say_so(tmp_path: Path) -> None:
    content = make_lines(40)
    told = {"x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "0"}
    async with backend_process(Script(answer=Answer(headers=told))) as backend:
        settings = limited(backend.base_url, rate_headers=False, max_in_flight=1)
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert conserved(client, ended, content, await backend.log()).finished == 40


async def test_a_refusal_costs_no_attempt_and_the_backend_is_used_again_at_once(
    tmp_path: Path,
) -> None:
    """The account is emptied by somebody else at the start; the settings know the limit."""
    content = make_lines(40)
    rate = Rate(per_s=PER_S, holds=PER_S, at_start=-4 * PER_S)
    async with backend_process(Script(rate=rate)) as backend:
        settings = limited(backend.base_url, requests_per_minute=PER_S * 60)
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            await backend.set_script(Script(rate=rate))
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            log = await backend.log()
            assert conserved(client, ended, content).finished == 40
    found = statuses(log)
    assert found[200] == 40
    # At their pace alone eighty would be refused in the four seconds.
    assert 1 <= found[429] <= 30


async def test_a_refusal_that_is_followed_by_a_break_has_used_no_attempt(tmp_path: Path) -> None:
    content = make_lines(5)
    refused = Answer(status=429, retry_after="0")
    plan = (refused, refused, Answer(status=500), Answer())
    async with backend_process(Script(by_id={line_id(2): plan})) as backend:
        settings = limited(backend.base_url, requests_per_minute=6_000)
        settings["retry"] = {"max_attempts": 2, "base_s": 0.01}
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            log = await backend.log()
            assert conserved(client, ended, content).finished == 5
    assert statuses(log) == {200: 5, 429: 2, 500: 1}


async def test_a_cancel_does_not_wait_for_lines_that_wait_for_their_rate(tmp_path: Path) -> None:
    async with backend_process() as backend:
        with server(tmp_path, settings=limited(backend.base_url, requests_per_minute=1)) as running:
            client = running.client()
            content = make_lines(20)
            batch = submit(client, content)
            paced = "is at its rate limit (1 request a minute)"
            running.wait_readiness(lambda body: body["backends"][0]["reason"] == paced)
            client.batches.cancel(batch.id)
            ended = wait_for(client, batch.id)
            assert ended.status == "cancelled"
            assert conserved(client, ended, content, await backend.log()).finished == 0


async def test_a_line_that_would_wait_for_its_rate_goes_to_a_backend_with_room(
    tmp_path: Path,
) -> None:
    content = make_lines(200)
    async with backend_process() as slow, backend_process() as free:
        backends = [
            {"base_url": slow.base_url, "requests_per_minute": 6},
            {"base_url": free.base_url, "max_in_flight": 4},
        ]
        with server(tmp_path, settings=ONE_ATTEMPT | {"backend": backends}) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.status == "completed"
            assert conserved(client, ended, content).finished == 200
        assert (await slow.stats()).arrivals <= 6


async def test_models_of_one_address_have_limits_of_their_own(tmp_path: Path) -> None:
    """Each is a backend of its own, as docs/reference/settings.md says."""
    limits: dict[str, dict[str, int]] = {
        "small": {"max_in_flight": 4},
        "paced": {"requests_per_minute": 1},  # the first line goes after a minute
        "refused": {"max_in_flight": 1},
    }
    refusal = Answer(status=429, retry_after="200")
    script = Script(models=tuple(limits), by_id={line_id(2_000): (refusal,)})
    async with backend_process(script) as backend:
        entries = [
            {"name": f"at-{model}", "base_url": backend.base_url, "models": [model], **limit}
            for model, limit in limits.items()
        ]
        with server(tmp_path, settings=ONE_ATTEMPT | {"backend": entries}) as running:
            client = running.client()
            submit(client, make_lines(10, model="paced", start=1_000))
            submit(client, make_lines(1, model="refused", start=2_000))

            def both_wait(body: dict[str, Any]) -> bool:
                found = {
                    one["name"]: (one["state"], str(one["reason"])) for one in body["backends"]
                }
                paced = found["at-paced"]
                return (
                    found["at-refused"][0] == "gated"
                    and "(status 429); next try in " in found["at-refused"][1]
                    and paced[0] == "up"
                    and paced[1].startswith("is at its rate limit")
                )

            running.wait_readiness(both_wait)
            assert [event.id for event in (await backend.log()).arrivals] == [line_id(2_000)]
            await backend.clear()
            content = make_lines(300, model="small")
            ended = wait_for(client, submit(client, content).id)
            log = await backend.log()
            assert conserved(client, ended, content, log).finished == 300
            assert (await backend.stats()).max_in_flight <= 4

"""What the catalogue concludes from answers and failures, and when it asks again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from batchline.domain.errors import NotSent, SentUnanswered, UpstreamError
from batchline.executor.catalogue import (
    BackendReport,
    Catalogue,
    CatalogueTiming,
    Reach,
    after_failure,
    next_look_s,
    read_listing,
)
from batchline.executor.contract import BackendSettings
from batchline.executor.health import is_down
from batchline.executor.transport.contract import Answer

SOON_S = 20.0
LISTED = b'{"object": "list", "data": [{"id": "m1", "object": "model"}, {"id": "m2"}]}'


def ok(body: bytes = LISTED) -> Answer:
    return Answer(status=200, headers={}, body=body)


class Far:
    """The far side of a catalogue: says what it is told to, and counts the looks."""

    def __init__(self, *says: Answer | UpstreamError) -> None:
        self.says = list(says)
        self.looks = 0
        self.looked = asyncio.Event()

    async def get_json(self, path: str, *, timeout_s: float) -> Answer:
        assert path == "/models"
        assert timeout_s > 0
        self.looks += 1
        self.looked.set()
        answer = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(answer, UpstreamError):
            raise answer
        return answer

    async def send(self, *_: object, **__: object) -> Answer:
        raise AssertionError("the catalogue sends nothing")

    async def close(self) -> None:
        """Nothing is open."""


def backend(name: str, models: Sequence[str] | None = None) -> BackendSettings:
    return BackendSettings(name=name, base_url=f"http://{name}/v1", models=models)


def catalogue(
    far: dict[str, Far], *, models: dict[str, Sequence[str]] | None = None, **more: object
) -> Catalogue:
    backends = [backend(name, (models or {}).get(name)) for name in far]
    return Catalogue(backends, transports=far, **more)  # type: ignore[arg-type]  # the test's own


REFUSED = NotSent("no connection: connection refused")


@pytest.mark.parametrize(
    ("answer", "takes"),
    [
        (ok(), True),
        (ok(b'{"data": []}'), False),
        (ok(b"<html>"), True),
        (Answer(status=404, headers={}, body=b"{}"), True),
        (Answer(status=401, headers={}, body=b"{}"), False),
    ],
)
async def test_a_backend_that_does_not_list_its_models_takes_lines_all_the_same(
    answer: Answer, takes: bool
) -> None:
    # Many servers have no `/v1/models`. To call them away shows a wait where there is none.
    one = catalogue({"a": Far(answer)})
    assert not one.report()[0].takes_lines
    assert (await one.refresh("a")).takes_lines is takes


@pytest.mark.parametrize(
    ("answer", "models", "trouble"),
    [
        (ok(), ("m1", "m2"), None),
        (ok(b'{"data": [{"id": "m"}, {"id": "m"}]}'), ("m",), None),
        (ok(b'{"object": "list", "data": null}'), (), "has no models"),
        (ok(b'{"data": []}'), (), "has no models"),
        (ok(b"<html>"), None, "lists its models in a form that is not OpenAI's"),
        (ok(b'{"data": [{"id": 3}]}'), None, "lists its models in a form that is not OpenAI's"),
        (ok(b"[" * 100_000), None, "lists its models in a form that is not OpenAI's"),
        (
            ok(b'{"data": [{"id": "\xff"}]}'),
            None,
            "lists its models in a form that is not OpenAI's",
        ),
        (
            Answer(status=401, headers={}, body=b""),
            None,
            "refuses the key (status 401)",
        ),
        (
            Answer(status=503, headers={}, body=LISTED),
            None,
            "does not list its models (status 503)",
        ),
    ],
)
def test_an_answer_gives_models_or_what_is_wrong(
    answer: Answer, models: Sequence[str] | None, trouble: str | None
) -> None:
    listing = read_listing(answer)
    assert (listing.models, listing.trouble) == (models, trouble)


def test_looks_are_steady_while_it_answers_and_back_off_to_the_ceiling_while_not() -> None:
    timing = CatalogueTiming()
    report = BackendReport(name="b", base_url="http://b/v1")
    pauses = [next_look_s(report, timing)]
    for _ in range(7):
        report = after_failure(report, "gone", now_s=0)
        pauses.append(next_look_s(report, timing))
    assert pauses == [60, 1, 2, 4, 8, 16, 30, 30]
    assert next_look_s(BackendReport(name="b", base_url="", failures=10**9), timing) == 30


async def test_who_may_serve_a_model_is_who_lists_it_and_who_is_unknown() -> None:
    far = {"lists": Far(ok()), "other": Far(ok(b'{"data": [{"id": "m3"}]}')), "down": Far(REFUSED)}
    known = catalogue(far)
    assert known.backends_for("m1") == ["lists", "other", "down"]
    await known.refresh_all()
    assert known.backends_for("m1") == ["lists", "down"]
    assert known.backends_for("nobody-has-it") == ["down"]
    assert known.lists("lists", "m1")
    assert not known.lists("down", "m1")
    assert not known.lists("never-configured", "m1")
    assert not known.known()
    assert known.models() == ["m1", "m2", "m3"]


async def test_an_alias_is_served_by_whoever_serves_its_model_and_hides_a_model_of_its_name() -> (
    None
):
    far = {"one": Far(ok()), "two": Far(ok(b'{"data": [{"id": "m2"}, {"id": "m3"}]}'))}
    known = catalogue(far, aliases={"small": "m1", "m3": "m2", "none": "gone"})
    await known.refresh_all()
    assert known.backends_for("small") == ["one"]
    assert known.backends_for("m3") == ["one", "two"]
    assert known.backends_for("none") == []
    assert known.lists("one", "small")
    assert not known.lists("two", "small")
    assert known.name_at_backends("small") == "m1"
    assert known.name_at_backends("m1") == "m1"
    assert known.models() == ["m1", "m2", "small", "m3"]


async def test_it_is_known_once_every_backend_listed_its_models() -> None:
    one = catalogue({"a": Far(ok()), "b": Far(REFUSED, ok())})
    await one.refresh_all()
    assert not one.known()
    await one.refresh_all()
    assert one.known()
    assert not catalogue({}).known()


async def test_a_backend_that_went_away_keeps_its_models_so_that_lines_wait_for_it() -> None:
    one = catalogue({"a": Far(ok(), REFUSED)}, clock=lambda: 7.0)
    await one.refresh("a")
    report = await one.refresh("a")
    assert report.reach is Reach.UNREACHABLE
    assert report.trouble == "no connection: connection refused"
    assert report.checked_at_s == 7.0
    assert one.backends_for("m1") == ["a"]
    assert one.known()


async def test_a_backend_that_stops_listing_keeps_its_models_while_it_loads() -> None:
    loads = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
    one = catalogue({"a": Far(ok(), Answer(status=503, headers={}, body=loads))})
    await one.refresh("a")
    report = await one.refresh("a")
    assert (report.reach, report.models) == (Reach.REACHABLE, ("m1", "m2"))
    assert report.trouble == "does not list its models (status 503)"
    assert report.failures == 1  # so that it is asked again soon


async def test_what_was_listed_since_the_start_is_remembered_by_every_name_that_files_use() -> None:
    other = Answer(status=200, headers={}, body=b'{"data":[{"id":"other"}]}')
    one = catalogue({"a": Far(ok(), other)}, aliases={"small": "m1"}, models={})
    assert not one.has_listed("m1")
    await one.refresh("a")
    await one.refresh("a")
    assert one.backends_for("m1") == []
    assert [one.has_listed(model) for model in ("m1", "small", "other", "x")] == [True] * 3 + [
        False
    ]
    assert catalogue({"a": Far(ok())}, models={"a": ["mine"]}).has_listed("mine")


async def test_a_proxys_page_in_the_place_of_its_answer_is_none() -> None:
    page = Answer(status=502, headers={}, body=b"<html>")
    one = catalogue({"a": Far(ok(), page, page, ok())})
    await one.refresh("a")
    for failures in (1, 2):
        report = await one.refresh("a")
        assert (report.reach, report.models) == (Reach.UNREACHABLE, ("m1", "m2"))
        assert (report.failures, report.by_proxy) == (failures, True)
        assert report.trouble == "a proxy answers 502 for it"
        assert is_down(report) == (failures == 2)
    report = await one.refresh("a")
    assert (report.reach, report.by_proxy, is_down(report)) == (Reach.REACHABLE, False, False)


async def test_configured_models_outweigh_what_is_listed_but_a_refused_key_still_shows() -> None:
    far = Far(
        ok(), Answer(status=404, headers={}, body=b""), Answer(status=403, headers={}, body=b"")
    )
    one = catalogue({"a": far}, models={"a": ["mine"]})
    assert one.known()
    for trouble in (None, None, "refuses the key (status 403)"):
        report = await one.refresh("a")
        assert (report.models, report.trouble) == (["mine"], trouble)
        assert report.reach is Reach.REACHABLE


async def test_only_what_changed_is_told() -> None:
    told: list[BackendReport] = []
    one = catalogue({"a": Far(ok(), ok(), REFUSED)}, on_change=told.append)
    for _ in range(4):
        await one.refresh("a")
    assert [report.reach for report in told] == [Reach.REACHABLE, Reach.UNREACHABLE]


async def test_news_from_a_worker_brings_the_next_look_forward() -> None:
    """With an hour between looks: if this times out, the note woke nobody."""
    far = Far(REFUSED, ok())
    hour = CatalogueTiming(refresh_s=3600, first_retry_s=3600, retry_ceiling_s=3600)
    reached = asyncio.Event()

    def on_change(report: BackendReport) -> None:
        if report.reach is Reach.REACHABLE:
            reached.set()

    one = catalogue({"a": far}, timing=hour, on_change=on_change)
    running = asyncio.create_task(one.run())
    try:
        async with asyncio.timeout(SOON_S):
            await far.looked.wait()
            one.note_reachable("a")
            await reached.wait()
            assert far.looks == 2
            far.looked.clear()
            one.note_unreachable("a", "connection refused")
            assert one.report()[0].trouble == "connection refused"
            await far.looked.wait()
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_a_request_that_got_through_is_no_news_about_a_reachable_backend() -> None:
    far = Far(ok())
    one = catalogue({"a": far})
    running = asyncio.create_task(one.run())
    try:
        async with asyncio.timeout(SOON_S):
            await far.looked.wait()
            for _ in range(10):
                one.note_reachable("a")
                await asyncio.sleep(0)
        assert far.looks == 1
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


SILENT = SentUnanswered("no whole answer in time", reason="timeout")


async def test_silence_is_no_news_of_a_backend_that_answers_lines() -> None:
    """llama.cpp b11549: with more connections than its threads a look waits behind requests."""
    seen: list[BackendReport] = []
    asked: list[tuple[str, float]] = []

    def answers_lines(name: str, since: float) -> bool:
        asked.append((name, since))
        return True

    far = Far(ok())
    one = catalogue({"a": far}, clock=lambda: 7.0, on_look=seen.append, answers_lines=answers_lines)
    await one.refresh("a")
    far.says = [SILENT]
    for _ in range(3):
        await one.refresh("a")
    assert asked == [("a", 7.0)] * 3
    assert [(each.reach, each.trouble, each.failures) for each in seen] == [
        (Reach.REACHABLE, None, 0)
    ] * 4
    assert one.models() == ["m1", "m2"]


@pytest.mark.parametrize(
    ("fault", "answers"), [(SILENT, False), (REFUSED, True)], ids=["no lines", "refused"]
)
async def test_silence_without_answers_and_a_refused_connection_are_news(
    fault: UpstreamError, answers: bool
) -> None:
    far = Far(ok())
    one = catalogue({"a": far}, answers_lines=lambda _name, _since: answers)
    await one.refresh("a")
    far.says = [fault]
    assert (await one.refresh("a")).reach is Reach.UNREACHABLE


async def test_a_first_look_that_is_silent_tells_nothing_although_lines_are_answered() -> None:
    """What the backend serves is not known by that."""
    one = catalogue({"a": Far(SILENT)}, answers_lines=lambda _name, _since: True)
    assert (await one.refresh("a")).reach is Reach.UNREACHABLE

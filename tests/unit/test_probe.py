"""What is recognized of a backend by its pages, and what is advised by what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchline.cli.probe.probing import Found, advice
from batchline.cli.probe.recognition import Engine, in_hand, recognized
from batchline.cli.probe.report import as_text, snippet
from batchline.cli.probe.verdicts import Closing, Verdict
from batchline.config.loading import load
from batchline.executor.contract import CancelBy

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b {c} 7"} 2.0
vllm:num_requests_running{engine="1",model_name="a"} 1.0
vllm:num_requests_waiting{engine="0",model_name="a"} 1.0
vllm:request_success_total{finished_reason="stop"} 99.0
"""
SLOTS = b'[{"id":0,"is_processing":true,"n_ctx":4096},{"id":1,"is_processing":false}]'
OLD_SLOTS = b'[{"id":0,"state":1},{"id":1,"state":0},{"id":2,"state":1}]'


@pytest.mark.parametrize(
    ("pages", "owners", "engine", "count"),
    [
        (
            {"/metrics": VLLM, "/version": b'{"version":"0.8.5"}'},
            ["vllm"],
            Engine(
                name="vLLM",
                version="0.8.5",
                told_by=["/metrics", "/v1/models"],
                gauge_page="/metrics",
            ),
            4,
        ),
        (
            {"/metrics": b"sglang:num_running_reqs 3\nsglang:num_queue_reqs{a=\"b\"} 2.0\n"},
            ["sglang"],
            Engine(name="SGLang", told_by=["/metrics", "/v1/models"], gauge_page="/metrics"),
            5,
        ),
        (
            {"/slots": SLOTS, "/props": b'{"total_slots":2}'},
            ["llamacpp"],
            Engine(
                name="llama.cpp",
                told_by=["/slots", "/props", "/v1/models"],
                gauge_page="/slots",
                places=2,
            ),
            1,
        ),
        (
            {"/slots": OLD_SLOTS},
            [],
            Engine(name="llama.cpp", told_by=["/slots"], gauge_page="/slots", places=3),
            2,
        ),
        (
            {"/info": b'{"version":"3.0","max_concurrent_requests":128}'},
            [],
            Engine(name="TGI", version="3.0", told_by=["/info"], places=128),
            None,
        ),
        (
            {"/api/version": b'{"version":"0.5.1"}'},
            ["library"],
            Engine(name="Ollama", version="0.5.1", told_by=["/v1/models"]),
            None,
        ),
        (
            {"/api/version": b'{"version":"0.5.1"}'},
            ["me"],
            Engine(name="Ollama", version="0.5.1", told_by=["/api/version"]),
            None,
        ),
        # Pages that only look like theirs.
        ({"/metrics": b"# vllm:num_requests_running 3\n", "/slots": b"{}"}, [], Engine(), None),
        ({"/metrics": b"vllm:num_requests_running many\n", "/slots": b"[]"}, [], Engine(), None),
        ({"/props": b"[[[", "/info": b"\xff", "/api/version": b"1"}, ["x"], Engine(), None),
    ],
)  # fmt: skip
def test_an_engine_is_recognized_by_its_pages(
    pages: dict[str, bytes], owners: list[str], engine: Engine, count: int | None
) -> None:
    assert recognized(owners, pages) == engine
    if engine.gauge_page is not None:
        assert in_hand(engine, pages[engine.gauge_page]) == count


def found(
    *,
    whole: Verdict = Verdict.UNKNOWN,
    streamed: Verdict = Verdict.UNKNOWN,
    broken: str | None = None,
    closes: int = 20,
    places: int | None = None,
    engine: str | None = None,
) -> Found:
    return Found(
        base_url="http://a:1/v1",
        engine=Engine(name=engine, places=places),
        models=["m", *map(str, range(6))],
        model="m",
        endpoint="/v1/chat/completions",
        stream_trouble=None,
        whole=Closing(verdict=whole, evidence="e1"),
        streamed=Closing(verdict=streamed, evidence="e2"),
        closes=closes,
        broken=broken,
        requests=30,
    )


CLOSE, DRAIN, CALL = CancelBy.CLOSE, CancelBy.DRAIN, CancelBy.CALL
PROVEN, REFUTED = Verdict.PROVEN, Verdict.REFUTED


@pytest.mark.parametrize(
    ("what", "cancel", "stream", "stops"),
    [
        (found(), CLOSE, False, False),
        (found(whole=PROVEN, streamed=PROVEN), CLOSE, False, True),
        (found(whole=PROVEN), CLOSE, False, True),
        (found(whole=REFUTED, streamed=PROVEN), CLOSE, True, True),
        (found(streamed=PROVEN), CLOSE, True, True),
        (found(whole=REFUTED, places=7), DRAIN, False, False),
        (found(streamed=REFUTED), DRAIN, False, False),
        (found(streamed=REFUTED, engine="SGLang"), CALL, False, False),
        (found(whole=PROVEN, streamed=PROVEN, broken="gone"), DRAIN, False, False),
    ],
)
def test_the_advice_follows_what_was_found_and_can_be_loaded(
    tmp_path: Path, what: Found, cancel: CancelBy, stream: bool, stops: bool
) -> None:
    told = advice(what)
    file = tmp_path / "batchline.toml"
    file.write_text(snippet(what, told, "A_KEY"))
    (backend,) = load(config=file, environ={"A_KEY": "k"}).backends
    assert (backend.cancel, backend.stream, backend.stops_on_close) == (cancel, stream, stops)
    assert backend.base_url == "http://a:1/v1"
    assert backend.max_in_flight == (what.engine.places or 64)
    assert (backend.abort_call is not None) == (cancel is CALL)


def test_the_report_says_what_was_found_and_what_was_not() -> None:
    said = as_text(found(whole=Verdict.REFUTED), advice(found()), api_key_env=None)
    assert "not recognized" in said
    assert "m, 0, 1, 2, 3 and 2 more" in said
    assert "does not stop it (e1)" in said
    assert "unknown (e2)" in said
    assert "it still answers after 20" in said
    assert "BROKEN after 7: gone" in as_text(
        found(broken="gone", closes=7), advice(found()), api_key_env=None
    )
    assert "not tried" in as_text(found(closes=0), advice(found()), api_key_env=None)

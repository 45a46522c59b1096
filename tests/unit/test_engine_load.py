"""What is read of an engine's metrics page, and what is no such page."""

from __future__ import annotations

import pytest

from batchline.executor.engine_load import NAMES, EngineLoad, read_load

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a }{ b"} 12.0
vllm:num_requests_running{engine="1",model_name="a }{ b"} 3.0 1750000000000
vllm:num_requests_running_max{engine="0"} 700.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 30.5
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="m"} 8.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 1000.0
"""

# As the engines printed them, shortened. llama.cpp b11549 with four slots and seven requests; no
# gauge of its cache, and no time of a token that is written at every step.
LLAMA_CPP = b"""\
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 44800
# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# HELP llamacpp:requests_deferred Number of requests deferred
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 3
# HELP llamacpp:n_busy_slots_per_decode Average number of busy slots per llama_decode() call
# TYPE llamacpp:n_busy_slots_per_decode gauge
llamacpp:n_busy_slots_per_decode 3.59959
"""
# vLLM 0.32.0, on a CPU, at rest.
VLLM_0_32 = b"""\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 0.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 5.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.0
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="tiny"} 3.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 421.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="tiny"} 421.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="tiny"} 10.28413653699863
vllm:inter_token_latency_seconds_created{engine="0",model_name="tiny"} 1.7958937678045363e+09
# TYPE vllm:request_time_per_output_token_seconds histogram
vllm:request_time_per_output_token_seconds_count{engine="0",model_name="tiny"} 5.0
vllm:request_time_per_output_token_seconds_sum{engine="0",model_name="tiny"} 0.18363363590472814
"""


@pytest.mark.parametrize(
    ("page", "load"),
    [
        (LLAMA_CPP, EngineLoad(running=4, waiting=3)),
        (
            VLLM_0_32,
            EngineLoad(running=0, waiting=0, kv_use=0.0, gaps=421.0, gap_s=10.28413653699863),
        ),
    ],
)
def test_pages_of_real_engines_are_read(page: bytes, load: EngineLoad) -> None:
    assert read_load(page) == load


def test_running_and_waiting_are_summed_and_the_fullest_cache_counts() -> None:
    assert read_load(VLLM) == EngineLoad(running=15, waiting=2, kv_use=0.5, gaps=1000.0, gap_s=30.5)


@pytest.mark.parametrize("value", [b"55", b"-0.5", b"NaN", b"+Inf", b"1.1"])
def test_a_cache_that_is_fuller_than_full_is_not_believed(value: bytes) -> None:
    """Of percent, say. If this fails, such an engine is full for ever, and the limit stays low."""
    page = b"vllm:num_requests_running 4\nvllm:kv_cache_usage_perc " + value + b"\n"
    assert read_load(page) == EngineLoad(running=4, waiting=0)


def test_nonsense_of_what_waits_is_not_believed() -> None:
    page = b"vllm:num_requests_running 4\nvllm:num_requests_waiting 1e9\n"
    assert read_load(page) == EngineLoad(running=4, waiting=0)


class Bytes(bytes):
    """Counts what is cut out of it."""

    cut = 0

    def __getitem__(self, key):  # type: ignore[no-untyped-def]  # as of bytes
        found = super().__getitem__(key)
        self.cut += 1 if isinstance(found, int) else len(found)
        return found


def test_a_page_of_one_long_line_is_read_once() -> None:
    """If this fails, a page of 8 MB holds up the server for minutes: all of it once a name."""
    page = Bytes(b"# " + b"vllm:num_requests_running " * 1_000)
    assert read_load(page) is None
    assert page.cut < len(page)


def test_an_older_name_for_the_same_is_known() -> None:
    older = VLLM.replace(b"inter_token_latency", b"time_per_output_token")
    older = older.replace(b"kv_cache_usage_perc", b"gpu_cache_usage_perc")
    assert read_load(older) == read_load(VLLM)


@pytest.mark.parametrize("engine", NAMES)
def test_every_engine_is_told_by_what_runs_and_needs_nothing_else(engine: str) -> None:
    page = NAMES[engine].running + b" 4\n"
    assert read_load(page) == read_load(page, engine) == EngineLoad(running=4, waiting=0)
    assert read_load(page, next(name for name in NAMES if name != engine)) is None


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>vllm:num_requests_running</html>",
        b"# TYPE vllm:num_requests_running gauge\n",
        b"vllm:num_requests_running NaN\n",
        b'vllm:num_requests_running{a="b"}\n',
        b"vllm:num_requests_running many\n",
        b"vllm:num_requests_running -1\n",
        b"vllm:num_requests_running 1e308\nvllm:num_requests_running 1e308\n",
        b"vllm:num_requests_running 1e300\n",
        b"vllm:num_requests_running 2e6\n",
        b"vllm:num_requests_running 5\nvllm:num_requests_running -1\n",
        b"\xff\xfe\x00vllm:num_requests_running 1",
    ],
)
def test_what_tells_no_number_is_no_page(page: bytes) -> None:
    assert read_load(page) is None

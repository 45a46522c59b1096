"""The whole job against a real llama.cpp with a model that was made a moment ago.

Only `make engines` runs these. What they showed first is written down in docs/engines.md.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from openai.types import Batch

from batchline.executor.engine_load import EngineLoad, read_load
from tests.engines.conftest import CONTEXT, SLOTS, LlamaCpp, llama_cpp
from tests.support.inputs import make_lines
from tests.support.server import conserved, content_of, server, submit, wait_for

pytestmark = pytest.mark.engines

LONG_S: Final = 120.0  # a machine that is shared
STOPS_WITHIN_S: Final = 5.0


def lines(count: int, model: str, **body: object) -> bytes:
    """Chat lines with these members in their bodies."""
    made = []
    for line in make_lines(count, model=model).splitlines():
        one = json.loads(line)
        made.append(json.dumps(one | {"body": one["body"] | body}))
    return "\n".join(made).encode()


def backend(engine: LlamaCpp, **settings: object) -> dict[str, Any]:
    table = {"name": "llama", "base_url": engine.url, **settings}
    return {"backend": [table], "cancel": {"grace_s": 0}}


def bodies(client: openai.OpenAI, batch: Batch) -> list[dict[str, Any]]:
    output = content_of(client, batch.output_file_id) or b""
    return [json.loads(line)["response"]["body"] for line in output.splitlines()]


def load(engine: LlamaCpp) -> EngineLoad:
    found = read_load(engine.page("/metrics"))
    assert found is not None
    return found


def test_chat_from_upload_to_download(tmp_path: Path, tiny: LlamaCpp) -> None:
    content = lines(300, tiny.model, max_tokens=8, temperature=0)
    with server(tmp_path, settings=backend(tiny, max_in_flight=SLOTS)) as running:
        client = running.client()
        assert [model.id for model in client.models.list()] == [tiny.model]
        batch = submit(client, content)
        ended = wait_for(client, batch.id, timeout_s=LONG_S)
        assert conserved(client, ended, content).finished == 300
        usage = ended.usage
        assert usage is not None
        assert usage.output_tokens == sum(
            one["usage"]["completion_tokens"] for one in bodies(client, ended)
        )
        assert usage.input_tokens_details.cached_tokens > 0  # all lines begin alike


def test_more_connections_than_threads_take_nothing_down(tmp_path: Path, tiny: LlamaCpp) -> None:
    """64 in flight at a server with `SLOTS` + 4 threads: some of the connections, and looks, wait
    until others are closed."""
    content = lines(300, tiny.model, max_tokens=32)
    with server(tmp_path, settings=backend(tiny, health_s=1, max_in_flight=64)) as running:
        client = running.client()
        ended = wait_for(client, submit(client, content).id, timeout_s=LONG_S)
        assert conserved(client, ended, content).finished == 300
        assert "backend_gated" not in running.log.read_text()


def test_when_nobody_says_how_many_it_gets_as_many_as_it_has_slots(
    tmp_path: Path, tiny: LlamaCpp
) -> None:
    content = lines(100, tiny.model, max_tokens=16)
    with server(tmp_path, tiny.url) as running:
        running.wait_log(f'"in_flight": {SLOTS}, "event": "backend_places"')
        client = running.client()
        batch = submit(client, content)
        ended = wait_for(client, batch.id, timeout_s=LONG_S)
        assert conserved(client, ended, content).finished == 100
        table = running.command("backends", "list").stdout
        assert f"of {SLOTS} " in table, table


def test_a_learnt_limit_comes_to_a_job_done(tmp_path: Path, tiny: LlamaCpp) -> None:
    content = lines(300, tiny.model, max_tokens=16)
    with server(tmp_path, settings=backend(tiny, concurrency="adaptive", stream=True)) as running:
        client = running.client()
        ended = wait_for(client, submit(client, content).id, timeout_s=LONG_S)
        assert conserved(client, ended, content).finished == 300
        assert bodies(client, ended)[0]["usage"]["completion_tokens"] > 0


def test_a_line_is_refused_in_the_engines_own_words_and_the_others_run(
    tmp_path: Path, tiny: LlamaCpp
) -> None:
    content = lines(5, tiny.model, max_tokens=4)
    first = json.loads(content.splitlines()[0])
    first["body"]["messages"][0]["content"] += "x" * 2 * CONTEXT
    content = json.dumps(first).encode() + content[content.index(b"\n") :]
    with server(tmp_path, settings=backend(tiny)) as running:
        client = running.client()
        ended = wait_for(client, submit(client, content).id, timeout_s=LONG_S)
        summary = conserved(client, ended, content)
        assert (summary.finished, summary.failed) == (4, 1)
        said = json.loads(content_of(client, ended.error_file_id) or b"")["response"]
        assert said["status_code"] == 400
        assert said["body"]["error"]["type"] == "exceed_context_size_error"


def test_without_max_tokens_an_answer_ends_with_the_context(tmp_path: Path, tiny: LlamaCpp) -> None:
    content = lines(4, tiny.model)
    with server(tmp_path, settings=backend(tiny)) as running:
        client = running.client()
        ended = wait_for(client, submit(client, content).id, timeout_s=LONG_S)
        assert conserved(client, ended, content).finished == 4
        for body in bodies(client, ended):
            assert body["usage"]["total_tokens"] <= CONTEXT
            assert body["choices"][0]["finish_reason"] in ("length", "stop")


def test_embeddings(tmp_path: Path, models: Path) -> None:
    with llama_cpp(models / "tiny.gguf", "embeddings") as engine:
        content = make_lines(100, model=engine.model, endpoint="/v1/embeddings")
        with server(tmp_path, settings=backend(engine)) as running:
            client = running.client()
            batch = submit(client, content, endpoint="/v1/embeddings")
            ended = wait_for(client, batch.id, timeout_s=LONG_S)
            assert conserved(client, ended, content).finished == 100
            assert len(bodies(client, ended)[0]["data"][0]["embedding"]) == 128


def test_its_page_tells_its_load(tiny: LlamaCpp) -> None:
    assert load(tiny) == EngineLoad(running=0, waiting=0)


def test_a_cancel_with_streams_frees_the_engine(tmp_path: Path, models: Path) -> None:
    with llama_cpp(models / "slow.gguf") as engine:
        content = lines(20, engine.model, max_tokens=1500, ignore_eos=True)
        with server(tmp_path, settings=backend(engine, stream=True, max_in_flight=8)) as running:
            client = running.client()
            batch = submit(client, content)
            wait_for(client, batch.id, "in_progress")
            until(lambda: load(engine).running == SLOTS)
            client.batches.cancel(batch.id)
            until(lambda: load(engine) == EngineLoad(running=0, waiting=0))
            ended = wait_for(client, batch.id, timeout_s=LONG_S)
            assert ended.status == "cancelled"
            assert conserved(client, ended, content).finished == 0


def test_a_killed_engine_costs_no_line(tmp_path: Path, models: Path) -> None:
    with llama_cpp(models / "slow.gguf") as engine:
        content = lines(24, engine.model, max_tokens=100, ignore_eos=True)
        with server(tmp_path, settings=backend(engine, max_in_flight=SLOTS)) as running:
            client = running.client()
            batch = submit(client, content)
            wait_for(client, batch.id, "in_progress")
            until(lambda: load(engine).running == SLOTS)
            engine.kill()
            running.wait_readiness(lambda body: body["backends"][0]["state"] == "gated")
            engine.start()
            ended = wait_for(client, batch.id, timeout_s=LONG_S)
            assert conserved(client, ended, content).finished == 24


def until(holds: Any, *, within_s: float = STOPS_WITHIN_S) -> None:
    """Poll: an engine tells nobody."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)

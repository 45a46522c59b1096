"""Idempotent creates over HTTP: `docs/compatibility.md`, the rules I…"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.contract.api.serving import ApiServer, Reply

ORDER: dict[str, Any] = {
    "input_file_id": "file-none",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "metadata": {"a": "1", "b": "2"},
}


async def created(
    api: ApiServer, order: dict[str, Any] = ORDER, *, header: str | None = None
) -> Reply:
    headers = {"Content-Type": "application/json"}
    if header is not None:
        headers["Idempotency-Key"] = header
    return await api.request("POST", "/v1/batches", json.dumps(order).encode(), headers)


async def count(client: AsyncOpenAI) -> int:
    return len((await client.batches.list(limit=100)).data)


@pytest.mark.rule("I1")
async def test_a_create_that_is_sent_again_gives_the_same_batch_and_wakes_nobody(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    first = await created(api, header="my key")
    # The order of the metadata is no parameter, and where the key stands neither.
    again = await created(
        api, {**ORDER, "metadata": {"b": "2", "a": "1"}, "idempotency_key": "my key"}
    )
    both = await created(api, {**ORDER, "idempotency_key": "my key"}, header="my key")
    assert first.status == again.status == both.status == 200
    assert again.body == both.body == first.body
    assert await count(client) == 1
    assert len(api.runner.was_created) == 1


@pytest.mark.rule("I1")
async def test_fifty_creates_at_once_make_one_batch(api: ApiServer, client: AsyncOpenAI) -> None:
    async def create() -> str:
        batch = await client.batches.create(
            input_file_id="file-none",
            endpoint="/v1/embeddings",
            completion_window="24h",
            extra_body={"idempotency_key": "k"},
        )
        return batch.id

    assert len(set(await asyncio.gather(*(create() for _ in range(50))))) == 1
    assert await count(client) == 1
    assert len(api.runner.was_created) == 1


@pytest.mark.rule("I1")
async def test_creates_without_a_key_or_with_another_make_other_batches(
    api: ApiServer, client: AsyncOpenAI
) -> None:
    await created(api)
    await created(api)
    await created(api, {**ORDER, "idempotency_key": None})
    await created(api, header="one")
    await created(api, header="two")
    assert await count(client) == 5


@pytest.mark.rule("I2")
@pytest.mark.parametrize(
    "change",
    [
        {"input_file_id": "file-other"},
        {"endpoint": "/v1/embeddings"},
        {"metadata": None},
        {"invalid_lines": "skip"},
        {"metadata": {"a": "1", "b": "3"}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 3600}},
    ],
)
async def test_a_key_that_comes_with_other_parameters_is_refused(
    api: ApiServer, client: AsyncOpenAI, change: dict[str, Any]
) -> None:
    await created(api, header="k")
    reply = await created(api, {**ORDER, **change}, header="k")
    assert (reply.status, reply.headers["x-should-retry"]) == (409, "false")
    assert reply.error["code"] == "idempotency_key_reused"
    assert reply.error["param"] == "idempotency_key"
    assert await count(client) == 1


@pytest.mark.rule("I2")
async def test_the_official_client_does_not_retry_a_key_that_was_reused(api: ApiServer) -> None:
    await created(api, header="k")
    async with AsyncOpenAI(base_url=api.base_url, api_key="any", max_retries=2) as client:
        with pytest.raises(openai.ConflictError) as refused:
            await client.batches.create(
                input_file_id="file-other",
                endpoint="/v1/embeddings",
                completion_window="24h",
                extra_headers={"Idempotency-Key": "k"},
            )
    assert refused.value.request.headers["x-stainless-retry-count"] == "0"


@pytest.mark.rule("I3")
async def test_a_key_is_kept_for_a_day(api: ApiServer, client: AsyncOpenAI) -> None:
    first = (await created(api, header="k")).json["id"]
    api.clock.now += 86_399
    assert (await created(api, header="k")).json["id"] == first
    api.clock.now += 1
    assert (await created(api, header="k")).json["id"] != first
    assert await count(client) == 2


@pytest.mark.rule("I4")
@pytest.mark.parametrize(
    ("field", "header", "code"),
    [
        (5, None, "invalid_type"),
        ("", None, "invalid_value"),
        (None, "", "invalid_value"),
        ("x" * 256, None, "invalid_value"),
        ("é", None, "invalid_value"),
        ("nul\x00", None, "invalid_value"),
        ("one", "two", "invalid_value"),
    ],
)
async def test_a_key_that_is_none_is_refused(
    api: ApiServer, client: AsyncOpenAI, field: object, header: str | None, code: str
) -> None:
    reply = await created(api, {**ORDER, "idempotency_key": field}, header=header)
    assert (reply.status, reply.error["code"]) == (400, code)
    assert reply.error["param"] == "idempotency_key"
    assert await count(client) == 0


@pytest.mark.rule("I4")
async def test_a_refused_create_uses_no_key(api: ApiServer) -> None:
    assert (await created(api, {**ORDER, "endpoint": "/v1/x"}, header="x" * 255)).status == 400
    assert (await created(api, header="x" * 255)).status == 200

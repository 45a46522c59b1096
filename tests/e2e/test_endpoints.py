"""Every endpoint and every kind of body: what the file says is what the backend gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from batchline.domain.model import Endpoint
from tests.support.inputs import MODEL
from tests.support.scripted_backend import BackendControl, backend_process
from tests.support.server import (
    ServerProcess,
    conserved,
    content_of,
    server,
    submit,
    wait_for,
)

CHAT: Final = Endpoint.CHAT_COMPLETIONS
MIB: Final = 1024 * 1024
PIXEL: Final = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB"

# What is special about the JSON of each is its spelling: a copy by way of a parser would differ.
BODIES: Final[dict[Endpoint, list[bytes]]] = {
    Endpoint.CHAT_COMPLETIONS: [
        b'{"model":"test-model","messages":[{"role":"user","content":"\\u00e9\xc3\xa9 \\/ /"}]}',
        b'{ "messages" : [{"role":"user","content":[{"type":"text","text":"what is it"},'
        b'{"type":"image_url","image_url":{"url":"%b","detail":"low"}}]}],"model":"test-model" }'
        % PIXEL.encode(),
        (
            b'{"model":"test-model","messages":[{"role":"assistant","content":null,"tool_calls":'
            b'[{"id":"c","type":"function","function":{"name":"f","arguments":"{\\"a\\": 1}"}}]},'
            b'{"role":"tool","tool_call_id":"c","content":"[1, 2]"}],"tools":[{"type":"function",'
            b'"function":{"name":"f","parameters":{"type":"object","properties":{}}}}],'
            b'"temperature":0.70,"seed":12345678901234567890,"n":1e0,"stream":false}'
        ),
    ],
    Endpoint.COMPLETIONS: [
        b'{"model":"test-model","prompt":["a","b"],"logit_bias":{"50256":-1.0E2},"stop":null}',
        b'{"model":"test-model","prompt":[[1,2,3],[4]],"echo":true}',
    ],
    Endpoint.EMBEDDINGS: [
        b'{"model":"test-model","input":["one","two"],"encoding_format":"base64"}',
        b'{"model":"test-model","input":[[15496,995],[  7 ]]}',
    ],
    Endpoint.RESPONSES: [
        b'{"model":"test-model","input":[{"role":"user","content":[{"type":"input_text","text":'
        b'"hi"},{"type":"input_image","image_url":"%b"}]}],"tools":[{"type":"web_search"}]}'
        % PIXEL.encode(),
    ],
    Endpoint.MODERATIONS: [
        b'{"model":"test-model","input":[{"type":"text","text":"a"},{"type":"image_url",'
        b'"image_url":{"url":"%b"}}]}' % PIXEL.encode(),
    ],
    Endpoint.IMAGES_GENERATIONS: [
        b'{"model":"test-model","prompt":"a cat, \xf0\x9f\x90\x88","size":"1024x1024","n":2}'
    ],
    Endpoint.IMAGES_EDITS: [
        b'{"model":"test-model","prompt":"a hat","images":[{"image_url":"%b"}]}' % PIXEL.encode()
    ],
    Endpoint.VIDEOS: [b'{"model":"test-model","prompt":"waves","seconds":"4"}'],
    Endpoint.RERANK: [
        b'{"model":"test-model","query":"q","documents":["a",{"text":"b"}],"top_n":1}'
    ],
    Endpoint.SCORE: [b'{"model":"test-model","text_1":"q","text_2":["a","b"]}'],
}

# input, cached, output, reasoning and total tokens, as the scripted backend tells them.
USAGES: Final = {
    Endpoint.CHAT_COMPLETIONS: (11, 3, 7, 2, 18),
    Endpoint.COMPLETIONS: (11, 3, 7, 2, 18),
    Endpoint.EMBEDDINGS: (11, 0, 0, 0, 11),
    Endpoint.RESPONSES: (11, 3, 7, 2, 18),
    Endpoint.MODERATIONS: (0, 0, 0, 0, 0),
    Endpoint.IMAGES_GENERATIONS: (11, 0, 7, 0, 18),
    Endpoint.IMAGES_EDITS: (11, 0, 7, 0, 18),
    Endpoint.VIDEOS: (0, 0, 0, 0, 0),
    Endpoint.RERANK: (0, 0, 0, 0, 11),
    Endpoint.SCORE: (11, 0, 0, 0, 11),
}


def ten_megabytes(endpoint: Endpoint) -> bytes:
    """A body of more than 10 MB that the endpoint's rules let through; its model comes last."""
    text = json.dumps("\u00e9\\" * (5 * MIB // 2), ensure_ascii=False)
    key = "messages" if endpoint is Endpoint.CHAT_COMPLETIONS else "input"
    return f'{{"{key}":[{text}],\t"model":"{MODEL}"}}'.encode()


def line_of(number: int, endpoint: str, body: bytes) -> bytes:
    head = {"custom_id": f"line-{number}", "method": "POST", "url": str(endpoint)}
    return json.dumps(head).encode()[:-1] + b', "body": ' + body + b"}\n"


@pytest.fixture(scope="module")
async def serving(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[BackendControl, ServerProcess]]:
    """A backend and a server for all endpoints, one after the other."""
    async with backend_process() as backend:
        with server(tmp_path_factory.mktemp("endpoints"), backend.base_url) as running:
            yield backend, running


@pytest.mark.rule("X6")
async def test_a_model_goes_by_another_name_in_files_and_nothing_else_of_a_body_changes(
    tmp_path: Path,
) -> None:
    alias = b'"gpt-4o-mini"'
    odd = (
        b'{"metadata":{"model":"gpt-4o-mini"},"messages":["gpt-4o-mini"],'
        b'"mod\\u0065l" :\t"gpt-4o\\u002dmini" }'
    )
    bodies = [
        body.replace(b'"test-model"', alias)
        for body in [
            *BODIES[CHAT],
            ten_megabytes(CHAT),
            odd,
        ]
    ]
    content = b"".join(line_of(n, CHAT, body) for n, body in enumerate(bodies))
    async with backend_process() as backend:
        with server(
            tmp_path, backend.base_url, settings={"aliases": {"gpt-4o-mini": MODEL}}
        ) as running:
            client = running.client()
            assert [model.id for model in client.models.list()] == [MODEL, "gpt-4o-mini"]
            ended = wait_for(client, submit(client, content).id)
            assert (ended.status, ended.model) == ("completed", "gpt-4o-mini")
            assert conserved(client, ended, content).finished == len(bodies)
            output = content_of(client, ended.output_file_id) or b""
            assert output.count(b'"model":"test-model"') == len(bodies)
            sent = [
                body.replace(b'"gpt-4o\\u002dmini"', b'"test-model"')
                if b"u002d" in body
                else body.replace(alias, b'"test-model"')
                for body in bodies
            ]
            assert sorted(event.sha256 for event in (await backend.log()).arrivals) == sorted(
                hashlib.sha256(body).hexdigest() for body in sent
            )


@pytest.mark.rule("V15")
async def test_an_alias_of_a_model_that_nobody_serves_is_refused_by_its_own_name(
    tmp_path: Path,
) -> None:
    content = line_of(0, CHAT, b'{"model":"alias","messages":[]}')
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url, settings={"aliases": {"alias": "gone"}}) as running:
            client = running.client()
            ended = wait_for(client, submit(client, content).id)
            assert ended.errors is not None
            assert [(one.code, one.param) for one in ended.errors.data or []] == [
                ("model_not_found", "body.model")
            ]
            assert "'alias'" in str((ended.errors.data or [])[0].message)


@pytest.mark.rule("B6")
@pytest.mark.rule("X5")
@pytest.mark.parametrize("endpoint", list(Endpoint))
async def test_bodies_of_every_kind_reach_the_backend_byte_for_byte(
    serving: tuple[BackendControl, ServerProcess], endpoint: Endpoint
) -> None:
    backend, running = serving
    bodies = [*BODIES[endpoint], ten_megabytes(endpoint)]
    content = b"".join(line_of(n, endpoint, body) for n, body in enumerate(bodies))
    earlier = len((await backend.log()).arrivals)
    client = running.client()
    ended = wait_for(client, submit(client, content, endpoint=endpoint).id)
    assert ended.status == "completed"
    assert conserved(client, ended, content).finished == len(bodies)
    arrivals = (await backend.log()).arrivals[earlier:]
    assert {arrival.path for arrival in arrivals} == {endpoint.value}
    assert sorted(arrival.sha256 for arrival in arrivals) == sorted(
        hashlib.sha256(body).hexdigest() for body in bodies
    )
    assert ended.usage is not None
    used = ended.usage
    assert (
        used.input_tokens,
        used.input_tokens_details.cached_tokens,
        used.output_tokens,
        used.output_tokens_details.reasoning_tokens,
        used.total_tokens,
    ) == tuple(len(bodies) * tokens for tokens in USAGES[endpoint])

"""What a backend's requests have that their lines had not: a priority, and how answers come."""

from __future__ import annotations

import json

import pytest

from batchline.executor.contract import BackendSettings
from batchline.executor.edits import Edits, edits_of

CHAT = "/v1/chat/completions"
BODY = b'{"model": "m", "messages": []}'


def edits(**settings: object) -> Edits:
    made = edits_of(BackendSettings(name="b", base_url="http://b/v1", **settings))  # type: ignore[arg-type]
    assert made is not None
    return made


def test_a_backend_that_wants_nothing_has_no_edits() -> None:
    assert edits_of(BackendSettings(name="b", base_url="http://b/v1")) is None


@pytest.mark.parametrize("priority", [1, 0, -5])
def test_a_priority_is_put_before_the_rest_of_the_body(priority: int) -> None:
    assert edits(priority=priority).made(CHAT, BODY) == (
        b'{"priority":%d,"model": "m", "messages": []}' % priority,
        None,
    )


@pytest.mark.parametrize(
    "body", [b'{"model": "m", "priority": 9}', b'{"priority": null, "model": "m"}']
)
def test_a_priority_of_the_lines_own_is_kept(body: bytes) -> None:
    assert edits(priority=1).made(CHAT, body) == (body, None)


def test_a_priority_and_a_stream_go_together() -> None:
    made = edits(priority=3, stream=True).made(CHAT, BODY)
    assert made is not None
    body, pieces = made
    assert pieces is not None
    assert json.loads(body) == {
        "priority": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "model": "m",
        "messages": [],
    }


def test_a_body_that_is_none_any_more_is_not_sent() -> None:
    assert edits(priority=3).made(CHAT, b'{"model": "m"') is None

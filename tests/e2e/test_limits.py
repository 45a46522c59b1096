"""Limits and windows are settings: the defaults are the service's, 0 lifts a limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from batchline.cli.parts import input_limits
from batchline.config.settings import LimitSettings, Settings
from batchline.domain.model import Endpoint
from batchline.service.planning import InputLimits
from tests.support.inputs import MODEL, make_lines
from tests.support.server import server

LIFTED: Final = {
    "max_file_bytes": 0,
    "max_batch_file_bytes": 0,
    "max_lines": 0,
    "max_embedding_inputs": 0,
    "max_line_bytes": 0,
}
MANY_LINES: Final = b"".join(
    b'{"custom_id":"%d","method":"POST","url":"/v1/completions","body":{"model":"m"}}\n' % number
    for number in range(50_001)
)
MANY_INPUTS: Final = (
    b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":[%b]}}'
    % b",".join([b'"x"'] * 50_001)
)


def checked(client: openai.OpenAI, content: bytes, endpoint: Endpoint) -> dict[str, Any]:
    """What a dry run of a batch of `content` says."""
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    order = {"input_file_id": file.id, "endpoint": endpoint, "completion_window": "24h"}
    answer = client.post("/batches/validate", body=order, cast_to=object)
    assert isinstance(answer, dict)
    return answer


@pytest.mark.rule("V5")
@pytest.mark.rule("V20")
@pytest.mark.parametrize("limits", [{}, LIFTED], ids=["defaults", "lifted"])
async def test_the_limits_on_lines_and_inputs_hold_by_default_and_0_lifts_them(
    tmp_path: Path, limits: Mapping[str, int]
) -> None:
    with server(tmp_path, "http://127.0.0.1:9", settings={"limits": limits}) as running:
        client = running.client()
        for content, endpoint, lines, code in [
            (MANY_LINES, Endpoint.COMPLETIONS, 50_001, "too_many_tasks"),
            (MANY_INPUTS, Endpoint.EMBEDDINGS, 1, "invalid_request"),
        ]:
            found = checked(client, content, endpoint)
            if limits:
                assert (found["valid"], found["lines"], found["model"]) == (True, lines, "m")
            else:
                assert [one["code"] for one in found["errors"]["data"]] == [code]


@pytest.mark.rule("V4")
async def test_the_limits_on_bytes_are_settings(tmp_path: Path) -> None:
    content = make_lines(3)
    for name, code in [("max_batch_file_bytes", "file_too_large"), ("max_line_bytes", None)]:
        folder = tmp_path / name
        folder.mkdir()
        with server(folder, "http://127.0.0.1:9", settings={"limits": {name: 100}}) as running:
            found = checked(running.client(), content, Endpoint.CHAT_COMPLETIONS)
            codes = [one["code"] for one in found["errors"]["data"]]
            assert codes == ([code] if code else ["invalid_request"] * 3)
            assert MODEL in found["errors"]["data"][0]["message"] or code is None


def test_0_is_no_limit_to_validation_and_the_defaults_are_the_same_in_both_places() -> None:
    assert input_limits(Settings()) == InputLimits()
    lifted = Settings(limits=LimitSettings(**LIFTED))
    assert input_limits(lifted) == InputLimits(
        max_file_bytes=None, max_lines=None, max_line_bytes=None, max_embedding_inputs=None
    )


@pytest.mark.rule("B7")
async def test_a_window_that_the_settings_list_is_taken_and_others_are_named(
    tmp_path: Path,
) -> None:
    with server(
        tmp_path, "http://127.0.0.1:9", settings={"windows": ["24h", "90m", "7d"]}
    ) as running:
        client = running.client()
        order = {"input_file_id": "file-none", "endpoint": Endpoint.EMBEDDINGS}
        for window, seconds in [("24h", 86_400), ("90m", 5_400), ("7d", 604_800)]:
            made = client.post(
                "/batches", body={**order, "completion_window": window}, cast_to=object
            )
            assert isinstance(made, dict)
            assert made["completion_window"] == window
            assert made["expires_at"] - made["created_at"] == seconds
        with pytest.raises(openai.BadRequestError, match="must be '24h' or '90m' or '7d'"):
            client.post("/batches", body={**order, "completion_window": "1h"}, cast_to=object)

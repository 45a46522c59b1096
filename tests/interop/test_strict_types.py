"""Every answer fits the official client's types: no field that they lack, none that is missing.

The client itself accepts nearly anything; here its types are applied strictly. Needs no other
client, so it runs with `make test` as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import openai
import pydantic
import pytest
from openai.types import Batch, FileDeleted, FileObject, Model, Upload
from openai.types.shared import ErrorObject
from openai.types.uploads import UploadPart

from tests.support.inputs import make_lines
from tests.support.scripted_backend import Answer, BackendControl, Script, backend_process
from tests.support.server import server, wait_for

PAGE: Final = {"object", "data", "first_id", "last_id", "has_more"}
ORDER: Final[Any] = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}

T = TypeVar("T", bound=pydantic.BaseModel)


class Raw(Protocol):
    """An answer as it came."""

    @property
    def content(self) -> bytes: ...


def strictly(kind: type[T], raw: Raw) -> T:
    """The answer as the client's type: every required field and no unknown one, however deep."""
    return strict_value(kind, json.loads(raw.content))


def strict_value(kind: type[T], value: Any) -> T:
    return kind.model_validate_json(json.dumps(value), strict=True, extra="forbid")


def strict_page(kind: type[T], raw: Raw) -> list[T]:
    page = json.loads(raw.content)
    assert set(page) == PAGE
    assert page["object"] == "list"
    assert type(page["has_more"]) is bool
    ids = [one["id"] for one in page["data"]]
    assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1]) if ids else (None, None)
    return [strict_value(kind, one) for one in page["data"]]


def test_a_field_too_many_or_too_few_is_seen() -> None:
    """If this fails, the tests below hold nothing."""
    model: dict[str, Any] = {"id": "m", "created": 1, "object": "model", "owned_by": "me"}
    assert strict_value(Model, model).id == "m"
    for wrong in ({**model, "more": 1}, {"id": "m"}, {**model, "created": "1"}):
        with pytest.raises(pydantic.ValidationError):
            strict_value(Model, wrong)
    deep = dict.fromkeys(Batch.model_fields) | {"request_counts": {"more": 1}}
    with pytest.raises(pydantic.ValidationError, match=r"request_counts\.more"):
        strict_value(Batch, deep)


@pytest.mark.rule("S5")
async def test_models_and_files_fit(tmp_path: Path) -> None:
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            listed = json.loads(client.models.with_raw_response.list().content)
            assert set(listed) == {"object", "data"}
            models = [strict_value(Model, one) for one in listed["data"]]
            strictly(Model, client.models.with_raw_response.retrieve(models[0].id))

            raw = client.files.with_raw_response
            for purpose in ("batch", "fine-tune", "assistants", "user_data", "vision"):
                content = ("some.jsonl", make_lines(1))
                file = strictly(FileObject, raw.create(file=content, purpose=purpose))
                assert strictly(FileObject, raw.retrieve(file.id)) == file
            assert len(strict_page(FileObject, raw.list())) == 5
            assert len(strict_page(FileObject, raw.list(limit=2))) == 2
            assert strict_page(FileObject, raw.list(purpose="evals")) == []
            strictly(FileDeleted, raw.delete(file.id))


@pytest.mark.rule("S5")
def test_an_upload_fits(tmp_path: Path) -> None:
    with server(tmp_path, "http://127.0.0.1:9") as running:
        raw = running.client().uploads.with_raw_response
        order: Any = {"filename": "a", "purpose": "user_data", "bytes": 4, "mime_type": "text/x"}
        done, given_up = (strictly(Upload, raw.create(**order)) for _ in range(2))
        assert (done.status, done.file) == ("pending", None)
        part = strictly(UploadPart, with_part(running.client(), done.id))
        ended = strictly(Upload, raw.complete(done.id, part_ids=[part.id]))
        assert (ended.status, ended.file and ended.file.bytes) == ("completed", 4)
        assert strictly(Upload, raw.cancel(given_up.id)).status == "cancelled"


def with_part(client: openai.OpenAI, upload_id: str) -> Raw:
    return client.uploads.parts.with_raw_response.create(upload_id, data=b"some")


@pytest.mark.rule("S5")
def test_a_refusal_for_want_of_a_key_fits(tmp_path: Path) -> None:
    with server(tmp_path, "http://127.0.0.1:9") as running:
        running.new_key("alpha")
        with pytest.raises(openai.AuthenticationError) as refusal:
            running.client(key="sk-wrong").batches.list()
        strict_value(ErrorObject, json.loads(refusal.value.response.content)["error"])


@pytest.mark.rule("S5")
async def test_a_batch_fits_in_every_status(tmp_path: Path) -> None:
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        with server(tmp_path, backend.base_url, settings={"cancel": {"grace_s": 20}}) as running:
            client = running.client()
            raw = client.batches.with_raw_response
            assert strict_page(Batch, raw.list()) == []
            completed, cancelled = created(client, make_lines(2)), created(client, make_lines(100))
            failed = created(client, b'{"custom_id":"a"}\n')
            wait_for(client, failed.id, "failed")
            await backend.wait_until(min_held=3)
            assert fetched(client, completed.id).status == "in_progress"
            assert strictly(Batch, raw.cancel(cancelled.id)).status == "cancelling"
            assert fetched(client, cancelled.id).status == "cancelling"
            await ended(client, backend, completed.id, cancelled.id)

            found = {batch.id: batch for batch in strict_page(Batch, raw.list())}
            assert {batch.id: batch.status for batch in found.values()} == {
                failed.id: "failed",
                cancelled.id: "cancelled",
                completed.id: "completed",
            }
            assert found[failed.id].errors is not None
            for file_id in (found[completed.id].output_file_id, found[cancelled.id].error_file_id):
                assert file_id is not None
                file = strictly(FileObject, client.files.with_raw_response.retrieve(file_id))
                assert file.purpose == "batch_output"


def created(client: openai.OpenAI, content: bytes) -> Batch:
    file = client.files.create(file=("some.jsonl", content), purpose="batch")
    raw = client.batches.with_raw_response.create(input_file_id=file.id, **ORDER)
    batch = strictly(Batch, raw)
    assert batch.status == "validating"
    return batch


def fetched(client: openai.OpenAI, batch_id: str) -> Batch:
    return strictly(Batch, client.batches.with_raw_response.retrieve(batch_id))


async def ended(client: openai.OpenAI, backend: BackendControl, *batch_ids: str) -> None:
    await backend.stop_holding()
    for batch_id in batch_ids:
        wait_for(client, batch_id, "completed", "cancelled")
        fetched(client, batch_id)


@pytest.mark.rule("S5")
async def test_a_refusal_fits(tmp_path: Path) -> None:
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            client = running.client()
            batch = created(client, b'{"custom_id":"a"}\n')
            wait_for(client, batch.id, "failed")
            order: Any = {**ORDER, "input_file_id": "file-none", "completion_window": "1x"}
            for status, refused in (
                (404, lambda: client.files.retrieve("file-none")),
                (404, lambda: client.batches.retrieve("batch_none")),
                (404, lambda: client.models.retrieve("none")),
                (404, lambda: client.get("/nowhere", cast_to=object)),
                (400, lambda: client.batches.create(**order)),
                (409, lambda: client.batches.cancel(batch.id)),
            ):
                with pytest.raises(openai.APIStatusError) as refusal:
                    refused()  # type: ignore[no-untyped-call]  # a lambda of the table
                assert refusal.value.status_code == status
                body = json.loads(refusal.value.response.content)
                assert set(body) == {"error"}
                strict_value(ErrorObject, body["error"])

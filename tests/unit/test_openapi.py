"""The OpenAPI document against the code: routes, fields, and what `wire.py` answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs
import pytest

from batchline.api import wire
from batchline.domain.ids import DEFAULT_PROJECT, BatchId, BlobName, FileId, PartId, UploadId
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import (
    Batch,
    Counts,
    Endpoint,
    File,
    LineProblem,
    Page,
    Purpose,
    Upload,
    UploadPart,
    UploadStatus,
    Usage,
)
from batchline.service import batches, upload_orders
from batchline.service.validation import ValidationResult
from tests.support.openapi import Documented
from tests.unit.test_docs_reference import application

DOCUMENTED = Documented()
DOCUMENT = DOCUMENTED.document
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OURS = {Endpoint.RERANK, Endpoint.SCORE}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


# -- the document ------------------------------------------------------------------------------


@pytest.mark.rule("X7")
def test_every_route_is_in_the_document_and_no_other() -> None:
    """If this fails, put the route into `batchline/api/operations.py`."""
    routes = {
        (method, path)
        for path, methods in application().openapi()["paths"].items()
        for method in methods
    }
    assert {(method, path) for method, path, _ in operations()} == routes


def test_every_parameter_of_a_path_is_described_and_no_other() -> None:
    for method, path, operation in operations():
        given = [one["name"] for one in operation.get("parameters", []) if one["in"] == "path"]
        assert [f"{{{name}}}" for name in given] == [
            part for part in path.split("/") if part.startswith("{")
        ], (method, path)


def test_operation_ids_differ_and_links_name_them() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    links = [
        link
        for _, _, operation in operations()
        for link in operation["responses"]["200"].get("links", {}).values()
    ]
    assert {link["operationId"] for link in links} < set(ids)


def test_every_schema_is_json_schema_and_used() -> None:
    text = json.dumps(DOCUMENT)
    for name, schema in SCHEMAS.items():
        jsonschema_rs.meta.validate(schema)
        assert f'"#/components/schemas/{name}"' in text, name


@pytest.mark.rule("X7")
def test_what_the_service_does_not_have_is_marked() -> None:
    marked = {path for _, path, one in operations() if one.get("x-batchline-extension")}
    assert marked == {path for _, path, one in operations() if one["tags"] == ["Extensions"]}
    assert {path for path in marked if path.startswith("/v1/")} == {
        "/v1/batches/validate",
        "/v1/batches/{batch_id}/progress",
        "/v1/batches/{batch_id}/receipt",
        "/v1/batches/{batch_id}/results",
    }
    fields = SCHEMAS["CreateBatch"]["properties"]
    assert [name for name in fields if "x-batchline-extension" in fields[name]] == [
        "invalid_lines",
        "identical_requests",
        "idempotency_key",
    ]
    assert set(SCHEMAS["Endpoint"]["x-batchline-extension-values"]) == OURS


# -- bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("CreateBatch", batches.FIELDS),
        ("CreateUpload", upload_orders._UPLOAD_FIELDS),
        ("CompleteUpload", upload_orders._COMPLETION_FIELDS),
    ],
)
def test_a_body_has_the_fields_that_the_code_knows(name: str, fields: frozenset[str]) -> None:
    """If this fails, describe the field in `batchline/api/schemas.py`."""
    assert set(SCHEMAS[name]["properties"]) == set(fields)
    assert SCHEMAS[name]["additionalProperties"] is False


# -- answers -----------------------------------------------------------------------------------

FILE = File(
    id=FileId("file-1"),
    project_id=DEFAULT_PROJECT,
    purpose=Purpose.BATCH,
    filename="a.jsonl",
    bytes=7,
    created_at=1,
    expires_at=None,
)
UPLOAD = Upload(
    id=UploadId("upload_1"),
    project_id=DEFAULT_PROJECT,
    purpose=Purpose.BATCH,
    filename="a.jsonl",
    bytes=7,
    created_at=1,
    expires_at=2,
    file_expires_after_s=None,
    status=UploadStatus.COMPLETED,
)
PART = UploadPart(
    id=PartId("part_1"),
    upload_id=UploadId("upload_1"),
    blob_name=BlobName("b"),
    bytes=1,
    created_at=1,
)
PROBLEM = LineProblem(code="invalid_json_line", message="no", param=None, line_number=3)
BATCH = Batch(
    sequence=1,
    id=BatchId("batch_1"),
    project_id=DEFAULT_PROJECT,
    endpoint=Endpoint.RESPONSES.value,
    completion_window="24h",
    input_file_id=FileId("file-1"),
    status=BatchStatus.FAILED,
    stopping=None,
    created_at=1,
    expires_at=2,
    errors=[PROBLEM],
    counts=Counts(total=1),
    usage=Usage(),
    metadata={"a": "b"},
    receipt={
        "requested_by": {"project_id": "proj_1", "key_id": None},
        "workers_killed": ["w"],
        "quiet_ms": 1.5,
    },
    cancelling_at=3,
)
PROBLEMS = ValidationResult(problems=[PROBLEM], model=None, lines=0)
EXAMPLES: Mapping[str, wire.Shape] = {
    "Batch": wire.batch(BATCH),
    "BatchReceipt": wire.receipt(BATCH),
    "BatchValidation": wire.validation(PROBLEMS),
    "DeletedFile": wire.file_deleted(FILE.id),
    "Error": wire.error("no", kind="server_error"),
    "File": wire.file(FILE),
    "Upload": wire.upload(UPLOAD, FILE),
    "UploadPart": wire.upload_part(PART),
}


def objects_in(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if not set(value) <= {"a"}:  # metadata has whatever fields callers like
            yield value
        for one in value.values():
            yield from objects_in(one)
    if isinstance(value, list):
        for one in value:
            yield from objects_in(one)


@pytest.mark.rule("X7")
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_answer_fits_and_with_a_field_more_or_less_it_does_not(name: str) -> None:
    """If this fails, `wire.py` and `schemas.py` differ; neither may be made looser."""
    schema = {"$ref": f"#/components/schemas/{name}"}
    value = json.loads(wire.encode(EXAMPLES[name]))
    assert DOCUMENTED.fits(schema, value) is None
    for one in list(objects_in(value)):
        one["more"] = None
        assert DOCUMENTED.fits(schema, value) is not None, one
        del one["more"]
        for field, content in list(one.items()):
            del one[field]
            assert DOCUMENTED.fits(schema, value) is not None, field
            one[field] = [["never this"]]
            assert DOCUMENTED.fits(schema, value) is not None, field
            one[field] = content
    assert DOCUMENTED.fits(schema, value) is None


@pytest.mark.parametrize("name", ["Batch", "File", "Upload", "BatchReceipt", "BatchValidation"])
def test_fields_are_in_the_order_of_the_answer(name: str) -> None:
    assert list(SCHEMAS[name]["properties"]) == list(EXAMPLES[name])


def test_a_page_fits_and_its_items_are_looked_at() -> None:
    answer = DOCUMENT["paths"]["/v1/files"]["get"]["responses"]["200"]
    schema = answer["content"]["application/json"]["schema"]
    page = dict(wire.page(Page(items=[FILE], has_more=False), wire.file))
    assert DOCUMENTED.fits(schema, page) is None
    assert DOCUMENTED.fits(schema, {**page, "data": [{}]}) is not None
    assert DOCUMENTED.fits(schema, {**page, "object": "page"}) is not None

"""The OpenAPI document: every route with what it takes and every answer that it can give.

The routes take raw requests and check them by hand, in the service's words, so the framework knows
nothing of either; this table says it. Tests compare it with the routes and with real answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from batchline import __version__
from batchline.api import wire
from batchline.api.batches import DEFAULT_LIST
from batchline.api.errors import PayloadTooLarge, UnsupportedEncoding, problem_of
from batchline.api.extensions import MAX_OFFSET
from batchline.api.schemas import (
    BINARY,
    EXTENSION,
    IDEMPOTENCY_KEY,
    TEXT,
    Limits,
    Schema,
    page_of,
    record,
    ref,
    schemas,
)
from batchline.domain.errors import (
    BatchlineError,
    Forbidden,
    IllegalTransition,
    InvalidRequest,
    NotFound,
    StorageFull,
    StoreUnavailable,
    Unauthorized,
)
from batchline.domain.ids import BATCH_PREFIX
from batchline.domain.lifecycle import BatchStatus
from batchline.domain.model import Endpoint
from batchline.service import batches, files
from batchline.service.uploads import MAX_PART_BYTES

FILES, UPLOADS, BATCHES, MODELS, EXTENSIONS = "Files", "Uploads", "Batch", "Models", "Extensions"

_TAGS: Final = {
    FILES: "Inputs of batches and what batches produce.",
    UPLOADS: "Files that come in parts.",
    BATCHES: "Batches of requests.",
    MODELS: "What the backends serve.",
    EXTENSIONS: "What the OpenAI service does not have.",
}
_SERVICES_ENDPOINTS: Final = frozenset(Endpoint) - {Endpoint.RERANK, Endpoint.SCORE}

# What any request may be answered with: malformed, no key, a foreign page, a head that is too
# large, and what is the server's fault.
_TOO_SLOW: Final = HTTPStatus.REQUEST_TIMEOUT.value
_HEAD_TOO_LARGE: Final = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE.value
_SERVER_ERROR: Final = HTTPStatus.INTERNAL_SERVER_ERROR.value
_UNAVAILABLE: Final = HTTPStatus.SERVICE_UNAVAILABLE.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route. `refusals` are those of its own beside the ones that every route has.

    `open` routes need no key. `links` name the operations that take the `id` of the answer, each
    with the parameter that takes it.
    """

    id: str
    method: str
    path: str
    tag: str
    summary: str
    answer: Schema
    answer_headers: Mapping[str, Schema] = field(default_factory=dict)
    parameters: Sequence[Schema] = ()
    body: tuple[str, str] | None = None  # media type and name of the schema
    refusals: Sequence[type[BatchlineError]] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    open: bool = False


def document(limits: Limits) -> Schema:
    """The document of a server with these limits."""
    paths: dict[str, dict[str, Schema]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Batchline",
            "summary": "The OpenAI Batch API in front of any OpenAI-compatible backend.",
            "description": (
                "What the OpenAI service does not have is marked `x-batchline-extension`.\n\n"
                "A key is needed as soon as the server has one."
            ),
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"basic": []}, {}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": _marked(schemas(limits)),
            "responses": {name: _refused(status) for status, (name, _) in _REFUSALS.items()},
            "headers": _HEADERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "The key is the password; the name is not looked at.",
                },
            },
        },
    }


def _marked(named: Mapping[str, Schema]) -> Mapping[str, Schema]:
    extra = [endpoint.value for endpoint in Endpoint if endpoint not in _SERVICES_ENDPOINTS]
    return {**named, "Endpoint": {**named["Endpoint"], "x-batchline-extension-values": extra}}


def _described(operation: Operation) -> Schema:
    described: dict[str, object] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
    }
    if operation.tag == EXTENSIONS:
        described |= EXTENSION
    if operation.open:
        described["security"] = []
    if operation.parameters:
        described["parameters"] = operation.parameters
    if operation.body is not None:
        kind, name = operation.body
        described["requestBody"] = {"required": True, "content": {kind: {"schema": ref(name)}}}
    described["responses"] = {"200": _answered(operation), **_refusals_of(operation)}
    return described


def _answered(operation: Operation) -> Schema:
    answered: dict[str, object] = {
        "description": "Done.",
        "headers": {
            **_usual_headers(),
            **{
                name: {"required": True, "schema": schema}
                for name, schema in operation.answer_headers.items()
            },
        },
        "content": operation.answer,
    }
    if operation.links:
        answered["links"] = {
            name: {"operationId": name, "parameters": {parameter: "$response.body#/id"}}
            for name, parameter in operation.links.items()
        }
    return answered


def _refusals_of(operation: Operation) -> Mapping[str, Schema]:
    always = {InvalidRequest.status, Forbidden.status, _TOO_SLOW, _HEAD_TOO_LARGE}
    always |= {_SERVER_ERROR, _UNAVAILABLE}
    if operation.body is not None:
        always.add(UnsupportedEncoding.status)
    if not operation.open:
        always.add(Unauthorized.status)
    statuses = always.union(_status(one) for one in operation.refusals)
    answers: dict[str, Schema] = {
        str(status): {"$ref": f"#/components/responses/{_REFUSALS[status][0]}"}
        for status in sorted(statuses)
    }
    if operation.id == "getReadiness":
        answers[str(_UNAVAILABLE)] = {
            "description": "It cannot take and run batches, and says why; or it is shutting down.",
            "headers": _usual_headers(),
            "content": _json({"anyOf": [ref("Unreadiness"), ref("Error")]}),
        }
    return answers


# -- refusals ----------------------------------------------------------------------------------


def _status(kind: type[BatchlineError]) -> int:
    return problem_of(kind(""), method="", path="").status


def _headers(kind: type[BatchlineError]) -> Sequence[str]:
    return list(problem_of(kind(""), method="", path="").headers)


def _refused(status: int) -> Schema:
    _, description = _REFUSALS[status]
    more = {name: _HEADER[name] for name in _REFUSAL_HEADERS.get(status, ())}
    return {
        "description": description,
        "headers": {**_usual_headers(), **more},
        "content": _json(ref("Error")),
    }


_HEADER: Final[Mapping[str, Schema]] = {
    "www-authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "accept-encoding": {"required": True, "schema": {"const": "identity"}},
    "x-should-retry": {"required": True, "schema": {"const": "false"}},
    "retry-after": {
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
        "description": "Seconds.",
    },
}

_REFUSALS: Final[Mapping[int, tuple[str, str]]] = {
    InvalidRequest.status: ("BadRequest", "The request is not what the route takes."),
    Unauthorized.status: ("Unauthorized", "There are keys, and the request has none that works."),
    Forbidden.status: (
        "Forbidden",
        "There are no keys, and the request may be of a web page elsewhere.",
    ),
    NotFound.status: ("NotFound", "There is no such thing, or it is another project's."),
    IllegalTransition.status: (
        "Conflict",
        "The batch can no longer be cancelled, or the idempotency key stands for another create.",
    ),
    _TOO_SLOW: ("RequestTimeout", "Head or body of the request came too slowly."),
    PayloadTooLarge.status: ("PayloadTooLarge", "The JSON body is too large."),
    UnsupportedEncoding.status: ("UnsupportedEncoding", "The body is compressed."),
    _HEAD_TOO_LARGE: ("HeadTooLarge", "Request line and headers are too large."),
    _SERVER_ERROR: ("ServerError", "Unexpected; the log has more under the request id."),
    _UNAVAILABLE: (
        "Unavailable",
        "The database does not answer, there are too many connections, or the server shuts down.",
    ),
    _status(StorageFull): ("StorageFull", "The disk is full. Nothing was stored."),
}
_REFUSAL_HEADERS: Final[Mapping[int, Sequence[str]]] = {
    _status(kind): _headers(kind)
    for kind in (
        *(Unauthorized, IllegalTransition, UnsupportedEncoding),
        *(StoreUnavailable, StorageFull),
    )
}


# -- pieces ------------------------------------------------------------------------------------

_HEADERS: Final[Mapping[str, Schema]] = {
    "x-request-id": {
        "required": True,
        "schema": {"type": "string", "pattern": "^req_[0-9a-f]{32}$"},
        "description": "Under which the log has what went wrong.",
    },
    "openai-version": {"required": True, "schema": TEXT},
    "openai-processing-ms": {"required": True, "schema": {"type": "integer", "minimum": 0}},
}


def _usual_headers() -> Mapping[str, Schema]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}


def _json(schema: Schema) -> Schema:
    return {wire.JSON_TYPE: {"schema": schema}}


def _in_path(name: str, schema: Schema = TEXT) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: Schema, description: str = "") -> Schema:
    parameter: dict[str, object] = {"name": name, "in": "query", "schema": schema}
    return parameter | ({"description": description} if description else {})


def _integer(name: str, *, minimum: int, maximum: int, default: int, text: str = "") -> Schema:
    bounds = {"type": "integer", "minimum": minimum, "maximum": maximum, "default": default}
    return _query(name, bounds, text)


_FILE_ID: Final = _in_path("file_id")
_UPLOAD_ID: Final = _in_path("upload_id")
_BATCH_ID: Final = _in_path("batch_id", {"type": "string", "pattern": f"^{BATCH_PREFIX}"})
_AFTER: Final = _query("after", TEXT, "The id of the last item of the page before.")

_FORM: Final = "multipart/form-data"


def methods_of(path: str) -> Sequence[str]:
    """What may be done at the path of a route, as the path is written there."""
    known = [one for one in OPERATIONS if one.path == path.replace(":path}", "}")]
    return sorted(one.method.upper() for one in known)


OPERATIONS: Final[Sequence[Operation]] = (
    Operation(
        id="createFile",
        method="post",
        path="/v1/files",
        tag=FILES,
        summary="Upload a file.",
        body=(_FORM, "CreateFile"),
        answer=_json(ref("File")),
        refusals=[StorageFull],
        links={"retrieveFile": "file_id", "downloadFile": "file_id", "deleteFile": "file_id"},
    ),
    Operation(
        id="listFiles",
        method="get",
        path="/v1/files",
        tag=FILES,
        summary="List files.",
        parameters=[
            _query("purpose", TEXT, "Only files of this purpose."),
            _integer("limit", minimum=1, maximum=files.MAX_LIST, default=files.MAX_LIST),
            _query("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}),
            _AFTER,
        ],
        answer=_json(page_of("File")),
        refusals=[NotFound],
    ),
    Operation(
        id="retrieveFile",
        method="get",
        path="/v1/files/{file_id}",
        tag=FILES,
        summary="One file.",
        parameters=[_FILE_ID],
        answer=_json(ref("File")),
        refusals=[NotFound],
    ),
    Operation(
        id="downloadFile",
        method="get",
        path="/v1/files/{file_id}/content",
        tag=FILES,
        summary="The bytes of a file.",
        parameters=[_FILE_ID],
        answer={"application/octet-stream": {"schema": BINARY}},
        answer_headers={"content-disposition": TEXT},
        refusals=[NotFound],
    ),
    Operation(
        id="deleteFile",
        method="delete",
        path="/v1/files/{file_id}",
        tag=FILES,
        summary="Delete a file. A batch that runs on it keeps the bytes until it ends.",
        parameters=[_FILE_ID],
        answer=_json(ref("DeletedFile")),
        refusals=[NotFound, StorageFull],
    ),
    Operation(
        id="createUpload",
        method="post",
        path="/v1/uploads",
        tag=UPLOADS,
        summary="Begin an upload in parts.",
        body=(wire.JSON_TYPE, "CreateUpload"),
        answer=_json(ref("Upload")),
        refusals=[PayloadTooLarge, StorageFull],
        links={
            "addUploadPart": "upload_id",
            "completeUpload": "upload_id",
            "cancelUpload": "upload_id",
        },
    ),
    Operation(
        id="addUploadPart",
        method="post",
        path="/v1/uploads/{upload_id}/parts",
        tag=UPLOADS,
        summary=f"Add a part of at most {MAX_PART_BYTES} bytes.",
        parameters=[_UPLOAD_ID],
        body=(_FORM, "AddUploadPart"),
        answer=_json(ref("UploadPart")),
        refusals=[NotFound, StorageFull],
    ),
    Operation(
        id="completeUpload",
        method="post",
        path="/v1/uploads/{upload_id}/complete",
        tag=UPLOADS,
        summary="Make parts a file, in the order of `part_ids`.",
        parameters=[_UPLOAD_ID],
        body=(wire.JSON_TYPE, "CompleteUpload"),
        answer=_json(ref("Upload")),
        refusals=[NotFound, PayloadTooLarge, StorageFull],
    ),
    Operation(
        id="cancelUpload",
        method="post",
        path="/v1/uploads/{upload_id}/cancel",
        tag=UPLOADS,
        summary="Give an upload up.",
        parameters=[_UPLOAD_ID],
        answer=_json(ref("Upload")),
        refusals=[NotFound, StorageFull],
    ),
    Operation(
        id="createBatch",
        method="post",
        path="/v1/batches",
        tag=BATCHES,
        summary="Create a batch over an input file.",
        parameters=[
            {"name": "Idempotency-Key", "in": "header", "schema": IDEMPOTENCY_KEY, **EXTENSION}
        ],
        body=(wire.JSON_TYPE, "CreateBatch"),
        answer=_json(ref("Batch")),
        refusals=[IllegalTransition, PayloadTooLarge, StorageFull],
        links={
            "retrieveBatch": "batch_id",
            "cancelBatch": "batch_id",
            "getBatchReceipt": "batch_id",
            "readBatchResults": "batch_id",
        },
    ),
    Operation(
        id="listBatches",
        method="get",
        path="/v1/batches",
        tag=BATCHES,
        summary="List batches, newest first.",
        parameters=[
            _integer("limit", minimum=1, maximum=batches.MAX_LIST, default=DEFAULT_LIST),
            _AFTER,
        ],
        answer=_json(page_of("Batch")),
        refusals=[NotFound],
    ),
    Operation(
        id="retrieveBatch",
        method="get",
        path="/v1/batches/{batch_id}",
        tag=BATCHES,
        summary="One batch.",
        parameters=[_BATCH_ID],
        answer=_json(ref("Batch")),
        refusals=[NotFound],
    ),
    Operation(
        id="cancelBatch",
        method="post",
        path="/v1/batches/{batch_id}/cancel",
        tag=BATCHES,
        summary="Cancel a batch. After the answer no further request of it is sent.",
        parameters=[_BATCH_ID],
        answer=_json(ref("Batch")),
        refusals=[NotFound, IllegalTransition, StorageFull],
    ),
    Operation(
        id="getBatchReceipt",
        method="get",
        path="/v1/batches/{batch_id}/receipt",
        tag=EXTENSIONS,
        summary="What a cancel did. Null is what is not known, or not known yet.",
        parameters=[_BATCH_ID],
        answer=_json(ref("BatchReceipt")),
        refusals=[NotFound],
    ),
    Operation(
        id="readBatchResults",
        method="get",
        path="/v1/batches/{batch_id}/results",
        tag=EXTENSIONS,
        summary="Committed output lines, while the batch runs and after.",
        parameters=[
            _BATCH_ID,
            _integer(
                "after",
                minimum=0,
                maximum=MAX_OFFSET,
                default=0,
                text="The header `x-batchline-next-after` of the answer before.",
            ),
            _integer(
                "limit",
                minimum=1,
                maximum=MAX_OFFSET,
                default=MAX_OFFSET,
                text="Bytes; the answer ends with the commit that reaches them.",
            ),
        ],
        answer={"application/jsonl": {"schema": BINARY}},
        answer_headers={
            "x-batchline-next-after": {"type": "integer", "minimum": 0},
            "x-batchline-batch-status": {"enum": [status.value for status in BatchStatus]},
        },
        refusals=[NotFound],
    ),
    Operation(
        id="validateBatch",
        method="post",
        path="/v1/batches/validate",
        tag=EXTENSIONS,
        summary="A create that creates nothing and says every problem of the file.",
        body=(wire.JSON_TYPE, "CreateBatch"),
        answer=_json(ref("BatchValidation")),
        refusals=[PayloadTooLarge, StorageFull],
    ),
    Operation(
        id="listModels",
        method="get",
        path="/v1/models",
        tag=MODELS,
        summary="The models of all backends.",
        answer=_json(
            record({"object": {"const": "list"}, "data": {"type": "array", "items": ref("Model")}})
        ),
    ),
    Operation(
        id="retrieveModel",
        method="get",
        path="/v1/models/{model_id}",
        tag=MODELS,
        summary="One model; ids may hold slashes.",
        parameters=[_in_path("model_id")],
        answer=_json(ref("Model")),
        refusals=[NotFound],
    ),
    Operation(
        id="getLiveness",
        method="get",
        path="/healthz/live",
        tag=EXTENSIONS,
        summary="Whether the process answers at all.",
        answer=_json(ref("Liveness")),
        open=True,
    ),
    Operation(
        id="getReadiness",
        method="get",
        path="/healthz/ready",
        tag=EXTENSIONS,
        summary="Whether batches can be taken and run, and how backends, workers and disk are.",
        answer=_json(ref("Readiness")),
        open=True,
    ),
    Operation(
        id="getOpenapi",
        method="get",
        path="/openapi.json",
        tag=EXTENSIONS,
        summary="This document.",
        answer=_json({"type": "object"}),
        open=True,
    ),
    Operation(
        id="getDocs",
        method="get",
        path="/docs",
        tag=EXTENSIONS,
        summary="This document as a page for people.",
        answer={"text/html": {"schema": TEXT}},
        open=True,
    ),
    Operation(
        id="getDocsScript",
        method="get",
        path="/docs/swagger-ui-bundle.js",
        tag=EXTENSIONS,
        summary="The script of that page.",
        answer={"text/javascript": {"schema": TEXT}},
        open=True,
    ),
    Operation(
        id="getDocsStyle",
        method="get",
        path="/docs/swagger-ui.css",
        tag=EXTENSIONS,
        summary="The style of that page.",
        answer={"text/css": {"schema": TEXT}},
        open=True,
    ),
)

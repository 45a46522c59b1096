"""Every route of the API: what it takes, and the answers and refusals of its own.

The routes take raw requests and check them by hand, in the service's words, so the framework knows
nothing of either; this table says it. Tests compare it with the routes and with real answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from batchline.api import metrics, wire
from batchline.api.batches import DEFAULT_LIST
from batchline.api.errors import PayloadTooLarge, RangeNotSatisfiable
from batchline.api.extensions import MAX_OFFSET
from batchline.api.json_schema import BINARY, EXTENSION, TEXT, Schema, json_content, record, ref
from batchline.api.schemas import IDEMPOTENCY_KEY, page_of
from batchline.domain.errors import BatchlineError, IllegalTransition, NotFound, StorageFull
from batchline.domain.ids import BATCH_PREFIX
from batchline.domain.lifecycle import BatchStatus
from batchline.service import batches, files
from batchline.service.uploads import MAX_PART_BYTES

FILES, UPLOADS, BATCHES, MODELS, EXTENSIONS = "Files", "Uploads", "Batch", "Models", "Extensions"


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
    answer_in_part: Mapping[str, Schema] | None = None  # headers of a 206 beside those
    parameters: Sequence[Schema] = ()
    body: tuple[str, str] | None = None  # media type and name of the schema
    refusals: Sequence[type[BatchlineError]] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    open: bool = False


def _in_path(name: str, schema: Schema = TEXT) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: Schema, description: str = "") -> Schema:
    parameter: dict[str, object] = {"name": name, "in": "query", "schema": schema}
    return parameter | ({"description": description} if description else {})


def _header(name: str, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": TEXT, "description": description}


def _integer(name: str, *, minimum: int, maximum: int, default: int, text: str = "") -> Schema:
    bounds = {"type": "integer", "minimum": minimum, "maximum": maximum, "default": default}
    return _query(name, bounds, text)


_FILE_ID: Final = _in_path("file_id")
_UPLOAD_ID: Final = _in_path("upload_id")
_BATCH_ID: Final = _in_path("batch_id", {"type": "string", "pattern": f"^{BATCH_PREFIX}"})
_AFTER: Final = _query("after", TEXT, "The id of the last item of the page before.")

_FORM: Final = "multipart/form-data"


OPERATIONS: Final[Sequence[Operation]] = (
    Operation(
        id="createFile",
        method="post",
        path="/v1/files",
        tag=FILES,
        summary="Upload a file.",
        body=(_FORM, "CreateFile"),
        answer=json_content(ref("File")),
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
        answer=json_content(page_of("File")),
        refusals=[NotFound],
    ),
    Operation(
        id="retrieveFile",
        method="get",
        path="/v1/files/{file_id}",
        tag=FILES,
        summary="One file.",
        parameters=[_FILE_ID],
        answer=json_content(ref("File")),
        refusals=[NotFound],
    ),
    Operation(
        id="downloadFile",
        method="get",
        path="/v1/files/{file_id}/content",
        tag=FILES,
        summary="The bytes of a file.",
        parameters=[
            _FILE_ID,
            _header("range", "One range of bytes; anything else means the whole file."),
            _header("if-range", "The `etag` of the file of which the range is wanted."),
        ],
        answer={"application/octet-stream": {"schema": BINARY}},
        answer_headers={"content-disposition": TEXT, "accept-ranges": TEXT, "etag": TEXT},
        answer_in_part={"content-range": TEXT},
        refusals=[NotFound, RangeNotSatisfiable],
    ),
    Operation(
        id="deleteFile",
        method="delete",
        path="/v1/files/{file_id}",
        tag=FILES,
        summary="Delete a file. A batch that runs on it keeps the bytes until it ends.",
        parameters=[_FILE_ID],
        answer=json_content(ref("DeletedFile")),
        refusals=[NotFound, StorageFull],
    ),
    Operation(
        id="createUpload",
        method="post",
        path="/v1/uploads",
        tag=UPLOADS,
        summary="Begin an upload in parts.",
        body=(wire.JSON_TYPE, "CreateUpload"),
        answer=json_content(ref("Upload")),
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
        answer=json_content(ref("UploadPart")),
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
        answer=json_content(ref("Upload")),
        refusals=[NotFound, PayloadTooLarge, StorageFull],
    ),
    Operation(
        id="cancelUpload",
        method="post",
        path="/v1/uploads/{upload_id}/cancel",
        tag=UPLOADS,
        summary="Give an upload up.",
        parameters=[_UPLOAD_ID],
        answer=json_content(ref("Upload")),
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
        answer=json_content(ref("Batch")),
        refusals=[IllegalTransition, PayloadTooLarge, StorageFull],
        links={
            "retrieveBatch": "batch_id",
            "cancelBatch": "batch_id",
            "getBatchProgress": "batch_id",
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
        answer=json_content(page_of("Batch")),
        refusals=[NotFound],
    ),
    Operation(
        id="retrieveBatch",
        method="get",
        path="/v1/batches/{batch_id}",
        tag=BATCHES,
        summary="One batch.",
        parameters=[_BATCH_ID],
        answer=json_content(ref("Batch")),
        refusals=[NotFound],
    ),
    Operation(
        id="cancelBatch",
        method="post",
        path="/v1/batches/{batch_id}/cancel",
        tag=BATCHES,
        summary="Cancel a batch. After the answer no further request of it is sent.",
        parameters=[_BATCH_ID],
        answer=json_content(ref("Batch")),
        refusals=[NotFound, IllegalTransition, StorageFull],
    ),
    Operation(
        id="getBatchProgress",
        method="get",
        path="/v1/batches/{batch_id}/progress",
        tag=EXTENSIONS,
        summary="How fast a batch goes, when it may be done, and what it waits for.",
        parameters=[_BATCH_ID],
        answer=json_content(ref("BatchProgress")),
        refusals=[NotFound],
    ),
    Operation(
        id="getBatchReceipt",
        method="get",
        path="/v1/batches/{batch_id}/receipt",
        tag=EXTENSIONS,
        summary="What a cancel did, and what running identical requests once saved.",
        parameters=[_BATCH_ID],
        answer=json_content(ref("BatchReceipt")),
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
        answer=json_content(ref("BatchValidation")),
        refusals=[PayloadTooLarge, StorageFull],
    ),
    Operation(
        id="listModels",
        method="get",
        path="/v1/models",
        tag=MODELS,
        summary="The models of all backends.",
        answer=json_content(
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
        answer=json_content(ref("Model")),
        refusals=[NotFound],
    ),
    Operation(
        id="getLiveness",
        method="get",
        path="/healthz/live",
        tag=EXTENSIONS,
        summary="Whether the process answers at all.",
        answer=json_content(ref("Liveness")),
        open=True,
    ),
    Operation(
        id="getReadiness",
        method="get",
        path="/healthz/ready",
        tag=EXTENSIONS,
        summary="Whether batches can be taken and run, and how backends, workers and disk are.",
        answer=json_content(ref("Readiness")),
        open=True,
    ),
    Operation(
        id="getMetrics",
        method="get",
        path="/metrics",
        tag=EXTENSIONS,
        summary="Backends, workers, disk and the project's running batches, for Prometheus.",
        answer={metrics.CONTENT_TYPE: {"schema": TEXT}},
    ),
    Operation(
        id="getOpenapi",
        method="get",
        path="/openapi.json",
        tag=EXTENSIONS,
        summary="This document.",
        answer=json_content({"type": "object"}),
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

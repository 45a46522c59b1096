"""The OpenAPI document: the routes of `operations.py` with the objects of `schemas.py`.

And what is said of all routes alike: refusals, headers, keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

from batchline import __version__
from batchline.api.errors import (
    PayloadTooLarge,
    RangeNotSatisfiable,
    UnsupportedEncoding,
    problem_of,
)
from batchline.api.json_schema import EXTENSION, TEXT, Schema, json_content, ref
from batchline.api.operations import (
    BATCHES,
    EXTENSIONS,
    FILES,
    MODELS,
    OPERATIONS,
    UPLOADS,
    Operation,
)
from batchline.api.schemas import Limits, schemas
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
from batchline.domain.model import Endpoint

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
    answers = {"200": _answered(operation)}
    if operation.answer_in_part is not None:
        answers["206"] = _answered(operation, operation.answer_in_part)
    described["responses"] = {**answers, **_refusals_of(operation)}
    return described


def _answered(operation: Operation, in_part: Mapping[str, Schema] | None = None) -> Schema:
    answered: dict[str, object] = {
        "description": "Done." if in_part is None else "The range that was asked for.",
        "headers": {
            **_usual_headers(),
            **{
                name: {"required": True, "schema": schema}
                for name, schema in {**operation.answer_headers, **(in_part or {})}.items()
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
            "content": json_content({"anyOf": [ref("Unreadiness"), ref("Error")]}),
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
        "content": json_content(ref("Error")),
    }


_HEADER: Final[Mapping[str, Schema]] = {
    "www-authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "content-range": {"required": True, "schema": {"type": "string", "pattern": "^bytes [*]/"}},
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
    RangeNotSatisfiable.status: ("RangeNotSatisfiable", "The file has no byte in that range."),
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
        *(Unauthorized, IllegalTransition, UnsupportedEncoding, RangeNotSatisfiable),
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

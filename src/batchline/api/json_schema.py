"""JSON Schema (2020-12) in the words that the schemas here are written with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from batchline.api.wire import JSON_TYPE

Schema = Mapping[str, object]

EXTENSION: Final = {"x-batchline-extension": True}  # the service does not have it

TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
TIME: Final[Schema] = {"type": "integer", "format": "unixtime", "description": "Unix seconds."}
BINARY: Final[Schema] = {"type": "string", "format": "binary"}
MILLISECONDS: Final[Schema] = {"type": "number", "minimum": 0, "description": "Milliseconds."}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def json_content(schema: Schema) -> Schema:
    """The content of a body that is JSON."""
    return {JSON_TYPE: {"schema": schema}}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def record(properties: Mapping[str, Schema], *, optional: Sequence[str] = ()) -> Schema:
    """An object with these fields and no other; all but `optional` are always there."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def const(value: str) -> Schema:
    return {"type": "string", "const": value}


def one_of(values: Sequence[str]) -> Schema:
    return {"type": "string", "enum": [str(value) for value in values]}

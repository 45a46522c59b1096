"""Answers held to the OpenAPI document: documented status, headers and type, and a body that fits.

The schemas are strict, so a body with a field that is not documented does not fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import jsonschema_rs

from batchline.api import wire
from batchline.api.openapi import document
from batchline.api.schemas import Limits


class Answer(Protocol):
    """An HTTP answer as it came; header names in lower case."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


class Documented:
    """The document, and what it says of answers."""

    def __init__(self, *, max_upload_bytes: int = 2**33) -> None:
        limits = Limits(windows=["24h"], max_upload_bytes=max_upload_bytes)
        self.document: dict[str, Any] = json.loads(wire.encode(document(limits)))
        self._validators: dict[str, jsonschema_rs.Validator] = {}

    def operation(self, method: str, target: str) -> dict[str, Any] | None:
        """The operation that takes a request, None when no route does."""
        path = target.partition("?")[0]
        for pattern, operations in self._paths:
            if pattern.fullmatch(path) and method.lower() in operations:
                found: dict[str, Any] = operations[method.lower()]
                return found
        return None

    @cached_property
    def _paths(self) -> list[tuple[re.Pattern[str], dict[str, Any]]]:
        """Paths without parameters first, as OpenAPI has it."""
        paths = self.document["paths"]
        return [(_pattern(path), paths[path]) for path in sorted(paths, key=lambda p: p.count("{"))]

    def fits(self, schema: Mapping[str, Any], value: object) -> str | None:
        """What is wrong with `value`, None when it is as `schema` says."""
        key = json.dumps(schema)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = jsonschema_rs.Draft202012Validator(whole)
        try:
            self._validators[key].validate(json.loads(wire.encode(value)))
        except jsonschema_rs.ValidationError as wrong:
            return str(wrong)
        return None

    def assert_fits(self, method: str, target: str, answer: Answer) -> None:
        """The answer is one of those documented for the request. Nothing is said of no route."""
        operation = self.operation(method, target)
        if operation is None:
            return
        said = f"{method} {target}: {answer.status}"
        assert str(answer.status) in operation["responses"], said
        response = self._resolved(operation["responses"][str(answer.status)])
        for name, one in response["headers"].items():
            assert name in answer.headers, f"{said} without {name}"
            wrong = self.fits(self._resolved(one)["schema"], _number(answer.headers[name]))
            assert wrong is None, f"{said}, {name}: {wrong}"
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in response["content"], f"{said} of {kind}"
        if kind == wire.JSON_TYPE:
            wrong = self.fits(response["content"][kind]["schema"], json.loads(answer.body))
            assert wrong is None, f"{said}: {wrong}\n{answer.body.decode()}"

    def _resolved(self, value: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in value:
            return value
        found: Any = self.document
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        resolved: dict[str, Any] = found
        return resolved


def _pattern(path: str) -> re.Pattern[str]:
    """Ids of models may hold slashes; other things' may not."""
    parts = re.split(r"{(\w+)}", path)
    return re.compile(
        "".join(
            re.escape(part) if number % 2 == 0 else (".+" if part == "model_id" else "[^/]+")
            for number, part in enumerate(parts)
        )
    )


def _number(text: str) -> object:
    return int(text) if text.isdigit() else text

"""Fields of JSON bodies: read, checked, and refused in the service's words."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from batchline.domain.errors import InvalidRequest
from batchline.service.file_rules import check_expiry


def object_of(body: object) -> Mapping[str, object]:
    """`body` if it is a JSON object.

    Raises:
        InvalidRequest: it is something else.
    """
    if not isinstance(body, dict):
        raise InvalidRequest(
            f"Invalid type for request body: expected an object, but got {kind_of(body)} instead.",
            wire_code="invalid_type",
        )
    return body


def refuse_unknown(body: Mapping[str, object], known: Collection[str], *, prefix: str = "") -> None:
    """Raises InvalidRequest for the first field that is not in `known`."""
    for name in body:
        if name not in known:
            raise InvalidRequest(
                f"Unknown parameter: '{prefix}{name}'.",
                param=prefix + name,
                wire_code="unknown_parameter",
            )


def expires_after(body: Mapping[str, object], name: str) -> int | None:
    """The seconds of an expiry policy at `name`; None when there is none.

    Raises:
        InvalidRequest: its anchor is not `created_at`, or its seconds are out of range.
    """
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type(name, "an object", value)
    anchor = required_text(value, "anchor", prefix=f"{name}.")
    if anchor != "created_at":
        raise InvalidRequest(
            f"Invalid value: '{anchor}'. Value must be 'created_at'.",
            param=f"{name}.anchor",
            wire_code="invalid_value",
        )
    seconds = required_integer(value, "seconds", prefix=f"{name}.")
    refuse_unknown(value, ("anchor", "seconds"), prefix=f"{name}.")
    return check_expiry(seconds, param=f"{name}.seconds")


def required_text(body: Mapping[str, object], name: str, *, prefix: str = "") -> str:
    value = body.get(name)
    if name not in body:
        raise missing(prefix + name)
    if not isinstance(value, str):
        raise wrong_type(prefix + name, "a string", value)
    return value


def required_integer(body: Mapping[str, object], name: str, *, prefix: str = "") -> int:
    value = body.get(name)
    if value is None:
        raise missing(prefix + name)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 3600.0 is an integer in JSON Schema, and what some encoders write
    # bool is a subclass of int in Python, and not an integer in JSON.
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(prefix + name, "an integer", value)
    return value


def missing(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Missing required parameter: '{param}'.",
        param=param,
        wire_code="missing_required_parameter",
    )


def wrong_type(param: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid type for '{param}': expected {expected}, but got {kind_of(value)} instead.",
        param=param,
        wire_code="invalid_type",
    )


def kind_of(value: object) -> str:
    """What a decoded JSON value is, with its article, in the service's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"

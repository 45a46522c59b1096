"""How a backend's requests are ended, from its table in the settings: `cancel` and `abort_call`."""

from __future__ import annotations

import json
import re
from typing import Final

from batchline.domain.errors import ConfigError
from batchline.executor.contract import AbortCall, CancelBy
from batchline.executor.transport.heads import check_header

_KEYS: Final = ("path", "body", "id_header", "id_field")
_EXAMPLE: Final = '{ path = "/abort_request", id_field = "rid" }'
# What we say in these is not the user's to replace.
_OUR_HEADERS: Final = frozenset({"authorization", "content-type", "idempotency-key"})


def cancel_by(value: str, place: str) -> CancelBy:
    """`cancel` of a backend; ConfigError when it is none of the three."""
    try:
        return CancelBy(value)
    except ValueError:
        raise ConfigError(f"{place}: expected {', '.join(CancelBy)}, got {value!r}") from None


def abort_call(value: object, place: str, *, cancel: CancelBy) -> AbortCall | None:
    """`abort_call` of a backend, which is there (not None) where `cancel` is `call`.

    Raises:
        ConfigError: it is missing there or is there without; or could call for nothing, or for
            more than the one request.
    """
    if value is None and cancel is not CancelBy.CALL:
        return None
    if cancel is not CancelBy.CALL:
        raise ConfigError(f'{place}: means nothing without cancel = "call"')
    if not isinstance(value, dict):
        raise ConfigError(f'{place}: cancel = "call" needs it, a table such as {_EXAMPLE}')
    for key, text in value.items():
        if key not in _KEYS:
            raise ConfigError(f"{place}: {key}: unknown; allowed: {', '.join(_KEYS)}")
        if not isinstance(text, str) or not text:
            raise ConfigError(f"{place}: {key}: expected a text, got {text!r}")
    if "path" not in value:
        raise ConfigError(f"{place}: path: missing; such as in {_EXAMPLE}")
    return _checked(AbortCall(**value), place)


def _checked(call: AbortCall, place: str) -> AbortCall:
    if not re.fullmatch(r"/[!-~]*", call.path) or "#" in call.path:
        raise ConfigError(f"{place}: path: expected one on the backend's host, from its /")
    if "{id}" not in call.path + call.body:
        raise ConfigError(f"{place}: neither path nor body has {{id}}: whom should it abort?")
    try:
        json.loads(call.body.replace("{id}", "0"))
    except ValueError as exc:
        raise ConfigError(f"{place}: body: is not JSON: {exc}") from exc
    if call.id_field == "model":
        raise ConfigError(f"{place}: id_field: every request has a model of its own there")
    if call.id_header is not None:
        try:
            check_header(call.id_header, "0")
        except ValueError as exc:
            raise ConfigError(f"{place}: id_header: {exc}") from exc
        if call.id_header.lower() in _OUR_HEADERS:
            raise ConfigError(f"{place}: id_header: {call.id_header} says something else")
    return call

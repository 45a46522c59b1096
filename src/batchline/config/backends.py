"""The settings of backends: a table for each, `[[backend]]`, or addresses and nothing else."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from batchline.config.abort import abort_call, cancel_by
from batchline.config.limit import limits_of
from batchline.config.values import MISSING, Table, checked
from batchline.domain.errors import ConfigError
from batchline.executor.contract import BackendSettings, TransportName
from batchline.executor.transport.heads import check_header

# A key of its own has each line; bodies go out as they are, on connections that are ours.
_NOT_OF_ALL_REQUESTS: Final = frozenset(
    {
        *("idempotency-key", "content-encoding", "upgrade", "te", "trailer"),
        *("keep-alive", "proxy-connection"),
    }
)
_BACKEND_KEYS: Final = (
    *("name", "base_url", "api_key_env", "models", "max_in_flight", "connect_timeout_s"),
    *("total_timeout_s", "max_answer_bytes", "headers", "transport", "stream", "keep_partial"),
    *("requests_per_minute", "tokens_per_minute", "rate_headers", "first_byte_timeout_s"),
    *("cancel", "abort_call", "stops_on_close", "weight", "health_s"),
    *("concurrency", "min_in_flight", "interactive_slowdown", "priority"),
)
# What people copy from a line with curl. Lines would go to /v1/chat/completions/chat/completions.
_ENDPOINTS: Final = (
    r"/(chat/completions|completions|embeddings|responses|moderations|models|rerank|score)/*$"
)


def base_url_of(url: str) -> str:
    """The base URL that a person meant: with a scheme, without a slash at its end, and with `/v1`.

    A path that names a version already (`/v1beta/openai`) is left as it is.

    Raises:
        ValueError: it is no HTTP URL, or holds credentials, a query or a fragment.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    if re.search(_ENDPOINTS, parts.path):
        base = f"{parts.scheme}://{parts.netloc}{re.sub(_ENDPOINTS, '', parts.path)}"
        raise ValueError(f"{url!r} is an endpoint; the base URL is {base}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{parts.hostname}: a base URL has no credentials, query or fragment")
    try:
        valid = parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"{parts.netloc}: a port is a number from 1 to 65535")
    try:
        parts.hostname.encode("idna")
    except UnicodeError as exc:
        raise ValueError(f"{parts.hostname!r} is no name of a host") from exc
    path = parts.path.rstrip("/")
    if not re.search(r"/v[0-9]+[a-z0-9]*(/|$)", path):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def backend_at(
    url: str, *, api_key_env: str | None = None, environ: Mapping[str, str] | None = None
) -> BackendSettings:
    """One backend by its address, with every other setting as it is when nobody sets it.

    Raises:
        ConfigError: the address or the variable cannot be used.
    """
    env = os.environ if environ is None else environ
    table = (
        {"base_url": url} if api_key_env is None else {"base_url": url, "api_key_env": api_key_env}
    )
    return _backend(table, url, env)


def backends_of(
    upstreams: Sequence[str], in_file: Table, env: Mapping[str, str], *, variable: str
) -> tuple[BackendSettings, ...]:
    """Those of `upstreams`, or else of `variable` in `env`, or else of the file.

    Raises:
        ConfigError: with the place, the key, and what is allowed there.
    """
    tables = in_file.take("backend")  # taken in any case: it is a known key
    from_env = [url for url in env.get(variable, "").split(",") if url.strip()]
    place = "--upstream" if upstreams else variable
    urls = list(upstreams) or [url.strip() for url in from_env]
    if urls:
        made = [_backend({"base_url": url}, place, env) for url in urls]
    elif tables is MISSING:
        made = []
    elif isinstance(tables, list):
        place = in_file.place("[[backend]]")
        made = [_backend(table, f"{place} {n}", env) for n, table in enumerate(tables, start=1)]
    else:
        raise ConfigError(f"{in_file.place('backend')}: expected tables, [[backend]]")
    names = [backend.name for backend in made]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{place}: two backends are named {name!r}; give each its own name")
    return tuple(made)


def _backend(table: object, place: str, env: Mapping[str, str]) -> BackendSettings:
    if not isinstance(table, dict):
        raise ConfigError(f"{place}: expected a table, [[backend]]")
    for key in table:
        if key not in _BACKEND_KEYS:
            raise ConfigError(f"{place}: {key}: unknown; allowed: {', '.join(_BACKEND_KEYS)}")
    if "base_url" not in table:
        raise ConfigError(f"{place}: base_url: missing; the address of the server, http://…")

    def get(key: str, kind: Any) -> Any:
        if key not in table:
            return _BACKEND_DEFAULTS.get(key)
        return checked(table[key], kind, f"backend.{key}", f"{place}: {key}")

    try:
        base_url = base_url_of(get("base_url", str))
    except ValueError as exc:
        raise ConfigError(f"{place}: base_url: {exc}") from exc
    if get("keep_partial", bool) and not get("stream", bool):
        raise ConfigError(f"{place}: keep_partial: only of answers that are streamed; set stream")
    headers = _headers(table.get("headers", {}), f"{place}: headers")
    limits = limits_of(table, get, place)
    cancel = cancel_by(get("cancel", str), f"{place}: cancel")
    key_env = get("api_key_env", str)
    if key_env is not None:
        if any(name.lower() == "authorization" for name in headers):
            raise ConfigError(f"{place}: headers: Authorization is what api_key_env sends")
        headers["Authorization"] = f"Bearer {_key(key_env, f'{place}: api_key_env', env)}"
    return BackendSettings(
        name=_shown_name(get("name", str), place) or _name_of(base_url),
        base_url=base_url,
        models=get("models", tuple[str, ...]),
        max_in_flight=limits.ceiling,
        connect_timeout_s=get("connect_timeout_s", float),
        total_timeout_s=get("total_timeout_s", float),
        max_answer_bytes=get("max_answer_bytes", int),
        headers=headers or None,
        stream=get("stream", bool),
        keep_partial=get("keep_partial", bool),
        cancel=cancel,
        abort_call=abort_call(table.get("abort_call"), f"{place}: abort_call", cancel=cancel),
        stops_on_close=get("stops_on_close", bool),
        transport=_transport(get("transport", str), base_url, f"{place}: transport"),
        requests_per_minute=get("requests_per_minute", int),
        tokens_per_minute=get("tokens_per_minute", int),
        rate_headers=get("rate_headers", bool),
        first_byte_timeout_s=get("first_byte_timeout_s", float),
        weight=get("weight", float),
        health_s=get("health_s", float),
        concurrency=limits.concurrency,
        min_in_flight=limits.floor,
        interactive_slowdown=limits.slowdown,
        priority=get("priority", int),
        asks_places="max_in_flight" not in table,
    )


_BACKEND_DEFAULTS: Final[Mapping[str, object]] = {
    one.name: one.default
    for one in dataclasses.fields(BackendSettings)
    if one.default is not dataclasses.MISSING
}


def _name_of(base_url: str) -> str:
    """`host:port`, and the path where it says more than `/v1`."""
    return base_url.partition("://")[2].removesuffix("/v1")


def _shown_name(name: str | None, place: str) -> str | None:
    """`name`, which stands in tables and log lines and is typed after `backends drain`."""
    if name is not None and (not name.isprintable() or name != name.strip()):
        raise ConfigError(
            f"{place}: name: expected a text of one line without blanks around it, got {name!r}"
        )
    return name


def _headers(value: object, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected a table of texts")
    for name, text in value.items():
        if not isinstance(text, str):
            raise ConfigError(f"{place}: {name}: expected a text")
        try:
            check_header(name, text)
        except ValueError as exc:
            raise ConfigError(f"{place}: {exc}") from exc
        if name.lower() in _NOT_OF_ALL_REQUESTS:
            raise ConfigError(f"{place}: header {name!r} may not be set")
    return dict(value)


def _transport(name: str, base_url: str, place: str) -> TransportName:
    if name not in list(TransportName):
        raise ConfigError(f"{place}: expected one of {', '.join(TransportName)}, got {name!r}")
    if name == TransportName.HTTP1 and not base_url.startswith("http://"):
        raise ConfigError(f"{place}: {name} speaks http:// only; {TransportName.AUTO} knows that")
    return TransportName(name)


def _key(name: str, place: str, env: Mapping[str, str]) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # Not repeated in the message: someone may have written the key itself here.
        raise ConfigError(f"{place}: expected the name of an environment variable")
    key = env.get(name, "").strip()
    if not key:
        raise ConfigError(f"{place}: the environment variable {name} is not set")
    try:
        check_header("Authorization", key)
    except ValueError as exc:
        raise ConfigError(f"{place}: the value of {name} cannot be sent in a header") from exc
    return key

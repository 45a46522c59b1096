"""Settings: from the command line, the environment, a TOML file and defaults, in that order.

The only reader of the environment. A record that configures one part lives beside that part; the
rest is here. Every setting has one dotted key (`cancel.grace_s`), which is its place in the file
and, as `BATCHLINE_CANCEL_GRACE_S`, its name in the environment. docs/reference/settings.md lists
them all, and a test compares that list with the records below.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from batchline.api.connections import ConnectionSettings
from batchline.config_abort import abort_call, cancel_by
from batchline.config_limit import limits_of
from batchline.config_projects import ProjectSettings, projects_of
from batchline.config_values import (
    MIB,
    MISSING,
    Table,
    checked,
    from_text,
    path_or_none,
    read_file,
    window_s,
)
from batchline.domain.attempts import RetryPolicy
from batchline.domain.errors import ConfigError
from batchline.domain.plan import Order
from batchline.executor.contract import BackendSettings, TransportName
from batchline.executor.transport.heads import check_header
from batchline.service.disk import DiskSettings
from batchline.service.maintenance import RetentionSettings
from batchline.service.sharing import SchedulingSettings

ENV_PREFIX: Final = "BATCHLINE_"
# A key of its own has each line; bodies go out as they are, on connections that are ours.
_NOT_OF_ALL_REQUESTS: Final = frozenset(
    {
        *("idempotency-key", "content-encoding", "upgrade", "te", "trailer"),
        *("keep-alive", "proxy-connection"),
    }
)
_API_BASE_URL: Final = "http://127.0.0.1:8484/v1"  # where `batchline serve` listens by default


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where the API listens and where its state lives. Port 0: the kernel chooses.

    `insecure_no_auth` lets it listen for other machines although there are no keys.
    """

    host: str = "127.0.0.1"
    port: int = 8484
    data_dir: Path = Path("batchline-data")
    insecure_no_auth: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownSettings:
    """How long running requests may finish after SIGTERM."""

    grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelSettings:
    """How long running requests may finish after a cancel, how long the cancel call waits for the
    workers to acknowledge, and when the batch is `cancelled` whatever happens."""

    grace_s: float = 10.0
    ack_s: float = 0.25
    cap_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireSettings:
    """How long running requests may finish after the batch's window closed."""

    grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What may be uploaded; 0 lifts a limit. All defaults but the line's bytes are OpenAI's."""

    max_file_bytes: int = 512 * MIB
    max_upload_bytes: int = 8 * 1024 * MIB
    max_batch_file_bytes: int = 209_715_200
    max_lines: int = 50_000
    max_embedding_inputs: int = 50_000
    max_line_bytes: int = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTuning:
    """Worker processes. `byte_budget` bounds the requests and answers held in memory by each."""

    silent_s: float = 10.0
    commit_interval_s: float = 0.1
    byte_budget: int = 256 * MIB
    segment_bytes: int = 256 * MIB
    segment_idle_s: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that `batchline serve` can be told."""

    workers: int = 1
    windows: Mapping[str, int] = field(default_factory=lambda: {"24h": window_s("24h")})  # seconds
    allow_mixed_models: bool = False
    order: Order = Order.PREFIX  # in which the lines of a batch are dispatched
    server: ServerSettings = field(default_factory=ServerSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    shutdown: ShutdownSettings = field(default_factory=ShutdownSettings)
    cancel: CancelSettings = field(default_factory=CancelSettings)
    expire: ExpireSettings = field(default_factory=ExpireSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    disk: DiskSettings = field(default_factory=DiskSettings)
    worker: WorkerTuning = field(default_factory=WorkerTuning)
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    backends: tuple[BackendSettings, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)  # a model's name in files to its own
    projects: Mapping[str, ProjectSettings] = field(default_factory=dict)  # by name; not all
    probes: str = ""  # tests only, from BATCHLINE_PROBES: goes to telemetry.arm


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """The server that the client commands talk to."""

    base_url: str
    api_key: str


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
_NOT_SCALAR: Final = frozenset({"backends", "aliases", "projects", "probes"})


def load(
    *,
    config: Path | None = None,
    options: Mapping[str, object] | None = None,
    upstreams: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings of one run: command line, then environment, then file, then default.

    `options` holds values of the command line by dotted key; None means not given. `upstreams`, or
    else `BATCHLINE_UPSTREAM` (separated by commas), stand in for the backends of the file.
    `config`, or else `BATCHLINE_CONFIG`, names the file.

    Raises:
        ConfigError: with the place, the key, and what is allowed there.
    """
    env = os.environ if environ is None else environ
    config = config or path_or_none(env.get(f"{ENV_PREFIX}CONFIG"))
    table = read_file(config) if config is not None else {}
    in_file = Table(str(config), table)
    given = {key: value for key, value in (options or {}).items() if value is not None}

    def value(key: str, kind: Any) -> object:
        found = in_file.take(key)  # known, even where something outweighs it
        env_name = env_name_of(key)
        if key in given:
            return checked(given[key], kind, key, f"command line: {key}")
        if env_name in env:
            return checked(from_text(env[env_name], kind), kind, key, env_name)
        return MISSING if found is MISSING else checked(found, kind, key, in_file.place(key))

    values: dict[str, object] = {
        key: found for key, kind in scalars() if (found := value(key, kind)) is not MISSING
    }
    values["backends"] = _backends(upstreams, in_file, env)
    values["aliases"] = _aliases(in_file)
    values["projects"] = projects_of(in_file)
    values["probes"] = env.get(f"{ENV_PREFIX}PROBES", "")
    in_file.refuse_leftovers()
    settings = _assemble(values)
    _check_together(settings)
    return settings


def data_directory(given: Path | None, *, environ: Mapping[str, str] | None = None) -> Path:
    """The data directory by the same order, for commands that need no other setting.

    Raises:
        ConfigError: the file of `BATCHLINE_CONFIG` cannot be read.
    """
    env = os.environ if environ is None else environ
    key = "server.data_dir"
    config = path_or_none(env.get(f"{ENV_PREFIX}CONFIG"))
    if given is not None or config is None or env_name_of(key) in env:
        found: object = given or env.get(env_name_of(key)) or default_of(key)
    else:
        found = Table(str(config), read_file(config)).take(key)
        found = default_of(key) if found is MISSING else found
    return typing.cast("Path", checked(found, Path, key, key))


def api_settings(environ: Mapping[str, str] | None = None) -> ApiSettings:
    """Where the client commands go: the two variables that every OpenAI client reads.

    Raises:
        ConfigError: one of them cannot be used.
    """
    env = os.environ if environ is None else environ
    try:
        base_url = base_url_of(env.get("OPENAI_BASE_URL", "").strip() or _API_BASE_URL)
    except ValueError as exc:
        raise ConfigError(f"OPENAI_BASE_URL: {exc}") from exc
    api_key = env.get("OPENAI_API_KEY", "").strip() or "none"
    try:
        check_header("Authorization", api_key)
    except ValueError as exc:
        raise ConfigError("OPENAI_API_KEY: its value cannot be sent in a header") from exc
    return ApiSettings(base_url=base_url, api_key=api_key)


def env_name_of(key: str) -> str:
    """What a setting is called in the environment: `BATCHLINE_CANCEL_GRACE_S`."""
    return ENV_PREFIX + key.replace(".", "_").upper()


def scalars() -> Iterator[tuple[str, Any]]:
    """Every setting but the backends': its dotted key and its type, in the order of the records."""
    for name, kind in typing.get_type_hints(Settings).items():
        if dataclasses.is_dataclass(kind):
            for inner, inner_kind in typing.get_type_hints(kind).items():
                yield f"{name}.{inner}", inner_kind
        elif name not in _NOT_SCALAR:
            yield name, kind


def default_of(key: str) -> object:
    """What a setting is when nobody sets it."""
    value: object = Settings()
    for part in key.split("."):
        value = getattr(value, part)
    return value


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


# -- backends ----------------------------------------------------------------------------------


def _backends(
    upstreams: Sequence[str], in_file: Table, env: Mapping[str, str]
) -> tuple[BackendSettings, ...]:
    tables = in_file.take("backend")  # taken in any case: it is a known key
    from_env = [url for url in env.get(f"{ENV_PREFIX}UPSTREAM", "").split(",") if url.strip()]
    place = "--upstream" if upstreams else f"{ENV_PREFIX}UPSTREAM"
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


# -- aliases -----------------------------------------------------------------------------------


def _aliases(in_file: Table) -> dict[str, str]:
    """The models' names in files, by which the lines of a batch are let in, and what is sent."""
    table = in_file.take("aliases")
    place = in_file.place("aliases")
    if table is MISSING:
        return {}
    if not isinstance(table, dict):
        raise ConfigError(f'{place}: expected a table, [aliases], of "name" = "model"')
    for name, model in table.items():
        if not name:
            raise ConfigError(f"{place}: a name in files is not empty")
        if not isinstance(model, str) or not model:
            raise ConfigError(f"{place}: {name}: expected the name of a backend's model")
        if model in table:
            # One step only: a name then means the same wherever it is looked up.
            raise ConfigError(f"{place}: {name}: {model} is an alias itself")
    return dict(table)


# -- the whole ---------------------------------------------------------------------------------


def _assemble(values: Mapping[str, object]) -> Settings:
    changes: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(Settings).items():
        if dataclasses.is_dataclass(kind):
            inner = {
                key.partition(".")[2]: value
                for key, value in values.items()
                if key.startswith(f"{name}.")
            }
            changes[name] = typing.cast("Callable[..., object]", kind)(**inner)
        elif name in values:
            changes[name] = values[name]
    return Settings(**changes)


def _check_together(settings: Settings) -> None:
    if settings.disk.high_water_bytes < settings.disk.low_water_bytes:
        raise ConfigError("disk.high_water_bytes: below disk.low_water_bytes")


def check_reach(server: ServerSettings, *, has_keys: bool) -> None:
    """Hold a server that takes everybody to its own machine.

    Raises:
        ConfigError: others could reach it, there are no keys, and nobody said that this is meant.
    """
    if not has_keys and not server.insecure_no_auth and not is_loopback(server.host):
        raise ConfigError(
            f"server.host: {server.host} would let others in, and there are no keys; make one with"
            " `batchline keys create --project NAME`, or listen on 127.0.0.1, ::1 or localhost, or"
            " start with --insecure-no-auth"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

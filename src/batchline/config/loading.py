"""Settings: from the command line, the environment, a TOML file and defaults, in that order."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from batchline.config.aliases import aliases_of
from batchline.config.backends import backends_of, base_url_of
from batchline.config.projects import projects_of
from batchline.config.settings import ApiSettings, Settings, default_of, scalars
from batchline.config.values import MISSING, Table, checked, from_text, path_or_none, read_file
from batchline.domain.errors import ConfigError
from batchline.executor.transport.heads import check_header

ENV_PREFIX: Final = "BATCHLINE_"
_API_BASE_URL: Final = "http://127.0.0.1:8484/v1"  # where `batchline serve` listens by default


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
    values["backends"] = backends_of(upstreams, in_file, env, variable=f"{ENV_PREFIX}UPSTREAM")
    values["aliases"] = aliases_of(in_file)
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

"""The records of what `batchline serve` can be told, and what each is when nobody sets it.

A record that configures one part lives beside that part; the rest is here. Every setting has one
dotted key (`cancel.grace_s`), which is its place in the file and, as `BATCHLINE_CANCEL_GRACE_S`,
its name in the environment. docs/reference/settings.md lists them all, and a test compares that
list with the records below.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from batchline.api.connections import ConnectionSettings
from batchline.config.projects import ProjectSettings
from batchline.config.values import MIB, window_s
from batchline.domain.attempts import RetryPolicy
from batchline.domain.plan import Order
from batchline.executor.contract import BackendSettings
from batchline.service.disk import DiskSettings
from batchline.service.maintenance import RetentionSettings
from batchline.service.sharing import SchedulingSettings

_NOT_SCALAR: Final = frozenset({"backends", "aliases", "projects", "probes"})


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

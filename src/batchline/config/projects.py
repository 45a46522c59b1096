"""The settings of projects: a table for each, `[projects.NAME]`."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from batchline.config.values import MISSING, Table, checked
from batchline.domain.errors import ConfigError
from batchline.service.batches import IDENTICAL_REQUESTS
from batchline.service.keys import PROJECT_NAME

_KEYS: Final = ("weight", "identical_requests")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSettings:
    """What one project is given. `identical_requests` holds for batches that do not say."""

    weight: float = 1.0
    identical_requests: str = IDENTICAL_REQUESTS[0]

    @property
    def runs_once(self) -> bool:
        return self.identical_requests == "run_once"


def projects_of(in_file: Table) -> dict[str, ProjectSettings]:
    """The settings of each project that has a table, by the project's name.

    Raises:
        ConfigError: with the place, the key, and what is allowed there.
    """
    tables = in_file.take("projects")
    place = in_file.place("projects")
    if tables is MISSING:
        return {}
    if not isinstance(tables, dict):
        raise ConfigError(f"{place}: expected tables, [projects.NAME]")
    for name in tables:
        if PROJECT_NAME.fullmatch(name) is None:
            raise ConfigError(
                f"{place}: no project can be called {name!r}: 1 to 64 letters, digits, '.', '_'"
                " and '-', the first a letter or digit"
            )
    return {name: _project(table, f"{place}.{name}") for name, table in tables.items()}


def _project(table: object, place: str) -> ProjectSettings:
    if not isinstance(table, dict):
        raise ConfigError(f"{place}: expected a table, [projects.NAME]")
    for key in table:
        if key not in _KEYS:
            raise ConfigError(f"{place}: {key}: unknown; allowed: {', '.join(_KEYS)}")
    return ProjectSettings(
        weight=_weight(table, place), identical_requests=_identical(table, place)
    )


def _weight(table: Mapping[str, object], place: str) -> float:
    if "weight" not in table:
        return ProjectSettings().weight
    weight = checked(table["weight"], float, "projects.weight", f"{place}: weight")
    return typing.cast("float", weight)


def _identical(table: Mapping[str, object], place: str) -> str:
    value = table.get("identical_requests", IDENTICAL_REQUESTS[0])
    for one in IDENTICAL_REQUESTS:
        if value == one:
            return one
    raise ConfigError(
        f"{place}: identical_requests: expected one of {', '.join(IDENTICAL_REQUESTS)},"
        f" got {value!r}"
    )

"""The settings of projects: a table for each, `[projects.NAME]`."""

from __future__ import annotations

import typing
from typing import Final

from batchline.config_values import MISSING, Table, checked
from batchline.domain.errors import ConfigError

_KEYS: Final = ("weight",)


def project_weights(in_file: Table) -> dict[str, float]:
    """The weight of each project that has one, by the project's name.

    Raises:
        ConfigError: with the place, the key, and what is allowed there.
    """
    tables = in_file.take("projects")
    place = in_file.place("projects")
    if tables is MISSING:
        return {}
    if not isinstance(tables, dict):
        raise ConfigError(f"{place}: expected tables, [projects.NAME]")
    weights = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{place}.{name}: expected a table, [projects.NAME]")
        for key in table:
            if key not in _KEYS:
                raise ConfigError(f"{place}.{name}: {key}: unknown; allowed: {', '.join(_KEYS)}")
        if "weight" in table:
            weight = checked(table["weight"], float, "projects.weight", f"{place}.{name}: weight")
            weights[name] = typing.cast("float", weight)
    return weights

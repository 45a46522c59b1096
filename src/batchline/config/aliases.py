"""The settings of aliases: one table, `[aliases]`, of names in files and what they stand for."""

from __future__ import annotations

from batchline.config.values import MISSING, Table
from batchline.domain.errors import ConfigError


def aliases_of(in_file: Table) -> dict[str, str]:
    """The models' names in files, by which the lines of a batch are let in, and what is sent.

    Raises:
        ConfigError: with the place and what is allowed there.
    """
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

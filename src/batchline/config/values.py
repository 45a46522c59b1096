"""One setting at a time: taken from a file or a text, read as its type, held to its bounds."""

from __future__ import annotations

import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from batchline.domain.errors import ConfigError
from batchline.domain.plan import Order

MIB: Final = 1024 * 1024

_AT_LEAST: Final[Mapping[str, float]] = {
    "workers": 1,
    "connections.max_open": 1,
    "retry.max_attempts": 1,
    "retention.batch_file_s": 1,
    "retention.output_s": 1,
    "retention.upload_s": 1,
    "worker.byte_budget": MIB,
    "worker.segment_bytes": MIB,
    "backend.max_in_flight": 1,
    "backend.min_in_flight": 1,
    "backend.priority": -1_000_000_000,
    "backend.requests_per_minute": 1,
    "backend.tokens_per_minute": 1,
    "backend.max_answer_bytes": 1,
    "backend.health_s": 0.1,
    # Far apart, the sums of shares have no digits left for the others.
    "backend.weight": 0.001,
    "projects.weight": 0.001,
}
_AT_MOST: Final[Mapping[str, float]] = {
    "workers": 256,  # each is a process of some 20 MB: a slip of the hand must not fell the machine
    "server.port": 65535,
    "scheduling.urgent_share": 0.9,
    "backend.priority": 1_000_000_000,
    "backend.weight": 1_000,
    "projects.weight": 1_000,
}
# Of all others: what is longer or larger is a slip of the hand, and past 64 bits neither a message
# to a worker nor a row can hold it.
_LONGEST_S: Final = 1_000_000_000  # 31 years
_LARGEST: Final = 10**15
# A timeout of zero would mean "never answer"; whoever wants to wait for ever says so in weeks.
_ABOVE_ZERO: Final = frozenset(
    {
        *(
            "worker.silent_s",
            "worker.commit_interval_s",
            "worker.segment_idle_s",
            "cancel.cap_s",
            "retention.sweep_s",
        ),
        *(f"connections.{what}_timeout_s" for what in ("head", "body", "send")),
        *(f"backend.{what}_timeout_s" for what in ("connect", "first_byte", "total")),
    }
)


def window_s(window: str) -> int:
    """Seconds of a completion window: a whole number and `s`, `m`, `h` or `d`.

    Raises:
        ValueError: it is not spelled so, or longer than `_LONGEST_S`.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", window)
    if match is None:
        raise ValueError(f"{window!r} is not a number followed by s, m, h or d")
    seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if seconds > _LONGEST_S:
        raise ValueError(f"{window!r} is longer than {_LONGEST_S // 86400}d")
    return seconds


# Keys at the top that are tables, as they are written.
_TABLES: Final[Mapping[str, str]] = {
    "aliases": "[aliases]",
    "backend": "[[backend]]",
    "projects": "[projects.NAME]",
}

MISSING: Final = object()  # None is a value that TOML cannot hold, but defaults can


class Table:
    """A TOML file from which keys are taken one by one, so that what is left over is unknown."""

    def __init__(self, name: str, table: dict[str, Any]) -> None:
        self._name = name
        self._table = table
        self._taken: set[str] = set()

    def place(self, key: str) -> str:
        """How a message names `key` of this file."""
        return f"{self._name}: {key}"

    def take(self, key: str) -> object:
        """The value at `key`, or MISSING; the key counts as known from now on."""
        self._taken.add(key)
        section, dot, inner = key.rpartition(".")
        if not dot:
            return self._table.get(key, MISSING)
        table = self._table.get(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{self.place(section)}: expected a table, [{section}]")
        return table.get(inner, MISSING)

    def refuse_leftovers(self) -> None:
        """Raises ConfigError for the first key that nobody took."""
        sections = {key.partition(".")[0] for key in self._taken if "." in key}
        for name, value in self._table.items():
            is_section = name in sections and isinstance(value, dict)
            inner = [f"{name}.{key}" for key in value] if is_section else [name]
            for key in inner:
                if key not in self._taken:
                    raise ConfigError(f"{self.place(key)}: unknown; {self._allowed_beside(key)}")

    def _allowed_beside(self, key: str) -> str:
        section = key.rpartition(".")[0]
        beside = sorted(
            _TABLES.get(one, one) for one in self._taken if one.rpartition(".")[0] == section
        )
        sections = sorted({f"[{one.partition('.')[0]}]" for one in self._taken if "." in one})
        return "allowed here: " + ", ".join(beside if section else [*beside, *sections])


def read_file(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError when there is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: is not TOML: {exc}") from exc


def path_or_none(text: str | None) -> Path | None:
    """A path, or None for a text that is absent or empty."""
    return Path(text) if text else None


# -- one value ---------------------------------------------------------------------------------


def from_text(text: str, kind: Any) -> object:
    """What a text of the environment means as `kind`; the text itself when it means nothing."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
        if kind is int or kind is float:
            return kind(text)
    except ValueError:
        return text
    if kind not in (str, Path, Order):
        return [part.strip() for part in text.split(",")]
    return text


def checked(value: object, kind: Any, key: str, place: str) -> object:
    """`value` as `kind` within the bounds of `key`; ConfigError naming `place` otherwise."""
    try:
        return _READERS[kind](value, key)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{place}: {exc}") from exc


def _number(value: object, key: str, *, whole: bool) -> int | float:
    what = "a whole number" if whole else "a number"
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    # A whole number of any size is finite, and may be too large to be asked as a float.
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"expected {what}, got {value!r}")
    number = typing.cast("float", value)
    least = _AT_LEAST.get(key, 0)
    if key in _ABOVE_ZERO and number <= 0:
        raise ValueError(f"expected {what} above 0, got {value!r}")
    most = _AT_MOST.get(key)
    if number < least or (most is not None and number > most):
        bounds = f"from {least}" + ("" if most is None else f" to {most}")
        raise ValueError(f"expected {what} {bounds}, got {_short(value)}")
    beyond = _LONGEST_S if key.endswith("_s") else _LARGEST
    if most is None and number > beyond:
        raise ValueError(f"expected {what} up to {beyond}, got {_short(value)}")
    return int(number) if whole else float(number)


def _short(value: object) -> str:
    """A value as it was given, cut off where it fills the screen."""
    try:
        text = repr(value)
    except ValueError:  # Python does not spell out whole numbers of thousands of digits
        return "a far larger one"
    return text if len(text) <= 40 else f"{text[:40]}…"


def _whole(value: object, key: str) -> int:
    return int(_number(value, key, whole=True))


def _fraction(value: object, key: str) -> float:
    return float(_number(value, key, whole=False))


def _flag(value: object, _key: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r}")
    return value


def _text(value: object, _key: str) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"expected a text{'' if value else ' that is not empty'}, got {value!r}")
    return value


def _path(value: object, _key: str) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError(f"expected a path, got {value!r}")
    return Path(value).expanduser()


def _order(value: object, _key: str) -> Order:
    for order in Order:
        if value == order.value:
            return order
    raise ValueError(f"expected one of {', '.join(Order)}, got {value!r}")


def _texts(value: object, key: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise TypeError(f"expected a list of texts with at least one, got {value!r}")
    return tuple(dict.fromkeys(_text(one, key) for one in value))


def _windows(value: object, key: str) -> dict[str, int]:
    return {window: window_s(window) for window in _texts(value, key)}


_READERS: Final[Mapping[Any, Callable[[object, str], object]]] = types.MappingProxyType(
    {
        int: _whole,
        float: _fraction,
        bool: _flag,
        str: _text,
        Path: _path,
        Order: _order,
        tuple[str, ...]: _texts,
        Mapping[str, int]: _windows,
    }
)

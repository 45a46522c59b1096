"""Request heads of one backend: what repeats is spelled out once per route, not per request.

Building the same headers anew for every line cost 9 µs a line through aiohttp's own request class;
looking up a finished prefix costs 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from yarl import URL

from batchline import __version__

# What may not stand in a header (RFC 9110, 5.5): one of these in a value is a header smuggled in.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# There are some ten endpoints; to keep more would need a bug of the caller.
_MOST_KEPT: Final = 64
_KEY: Final = "idempotency-key"
_JSON: Final = MappingProxyType({"Content-Type": "application/json"})
_OURS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect"})


class Heads:
    """Spells the head of a request to `base_url` with `configured` headers."""

    def __init__(self, base_url: str, configured: Mapping[str, str]) -> None:
        """Raises ValueError when a configured header cannot be sent."""
        self._base_url = base_url
        # An answer from the same machine is not worth compressing; one over the internet is.
        over_tls = base_url.startswith("https:")
        defaults = {
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate" if over_tls else "identity",
            "User-Agent": f"batchline/{__version__}",
        }
        self._repeated = merged(defaults, configured)
        for name, value in self._repeated.items():
            check_header(name, value)
        self._keyed: dict[str, str] = {}  # the head of a POST up to the key, by path

    def post(
        self, path: str, length: int, key: str | None, headers: Mapping[str, str] | None
    ) -> bytes:
        """The head of a POST of `length` bytes of JSON; see `Transport.send`.

        Raises:
            ValueError: a header cannot be sent as it is.
        """
        if key is None or headers:
            return self._post(path, length, key, headers or {})
        prefix = self._keyed.get(path) or self._up_to_key(path)
        return f"{prefix}{key}\r\nContent-Length: {length}\r\n\r\n".encode()

    def get(self, path: str) -> bytes:
        """The head of a GET."""
        return f"{self._spell('GET', path, self._repeated)}\r\n".encode()

    def _post(self, path: str, length: int, key: str | None, headers: Mapping[str, str]) -> bytes:
        for name, value in headers.items():
            check_header(name, value)
        everything = merged(_JSON, self._repeated)
        if key is not None:
            everything = merged(everything, {_KEY: key})
        everything = merged(everything, headers)
        return f"{self._spell('POST', path, everything)}Content-Length: {length}\r\n\r\n".encode()

    def _up_to_key(self, path: str) -> str:
        spelled = self._spell("POST", path, merged(merged(_JSON, self._repeated), {_KEY: ""}))
        prefix = spelled.removesuffix("\r\n")
        if len(self._keyed) < _MOST_KEPT:
            self._keyed[path] = prefix
        return prefix

    def _spell(self, method: str, path: str, headers: Mapping[str, str]) -> str:
        url = URL(f"{self._base_url}{path}")
        lines = [f"{method} {url.raw_path_qs} HTTP/1.1", f"Host: {url.host_port_subcomponent}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines) + "\r\n"


def merged(under: Mapping[str, str], over: Mapping[str, str]) -> dict[str, str]:
    """`under` with `over` on top; names are the same when only their case differs."""
    replaced = {name.lower() for name in over}
    return {name: v for name, v in under.items() if name.lower() not in replaced} | dict(over)


def check_header(name: str, value: str) -> None:
    """Raises ValueError when a header could not be sent, or would break the framing."""
    if not _NAME.fullmatch(name) or name.lower() in _OURS:
        raise ValueError(f"header {name!r} may not be set")
    if _CONTROL.search(value):
        raise ValueError(f"header {name!r} holds a control character")

"""Request heads of one backend: what repeats is spelled out once per route, not per request.

Building the same headers anew for every line cost 9 µs a line through aiohttp's own request class;
looking up a finished prefix costs 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from yarl import URL

from batchline import __version__

# What may not stand in a header (RFC 9110, 5.5): one of these in a value is a header smuggled in.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# There are some ten endpoints and headers; to keep more would need a bug of the caller.
_MOST_KEPT: Final = 64
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
        self._repeated_names = frozenset(name.lower() for name in self._repeated) | {"content-type"}
        self._posts: dict[str, str] = {}  # how the head of a POST begins, by path
        self._gets: dict[str, str] = {}
        self._new_names: set[str] = set()  # that are not repeated, and may be sent

    def post(self, path: str, headers: Mapping[str, str], length: int) -> bytes:
        """The head of a POST of `length` bytes of JSON; `headers` win over configured ones.

        Raises:
            ValueError: a header cannot be sent as it is.
        """
        prefix = self._posts.get(path) or self._prefix("POST", path)
        known = self._new_names
        more = ""
        for name, value in headers.items():
            # The same few with every request. To ask for printable ones is a fifth of the cost of
            # looking for control characters.
            if not (name in known and value.isprintable()):
                if name.lower() in self._repeated_names:
                    return self._post_with_overrides(path, headers, length)
                check_header(name, value)
                if len(known) < _MOST_KEPT:
                    known.add(name)
            more += f"{name}: {value}\r\n"
        return f"{prefix}{more}Content-Length: {length}\r\n\r\n".encode()

    def get(self, path: str) -> bytes:
        """The head of a GET."""
        prefix = self._gets.get(path) or self._prefix("GET", path)
        return f"{prefix}\r\n".encode()

    def _prefix(self, method: str, path: str) -> str:
        repeated = dict(self._repeated)
        if method == "POST":
            repeated.setdefault("Content-Type", "application/json")
        prefix = self._spell(method, path, repeated)
        kept = self._posts if method == "POST" else self._gets
        if len(kept) < _MOST_KEPT:
            kept[path] = prefix
        return prefix

    def _post_with_overrides(self, path: str, headers: Mapping[str, str], length: int) -> bytes:
        everything = merged({"Content-Type": "application/json"}, self._repeated)
        everything = merged(everything, headers)
        for name, value in everything.items():
            check_header(name, value)
        return f"{self._spell('POST', path, everything)}Content-Length: {length}\r\n\r\n".encode()

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

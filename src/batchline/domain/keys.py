"""API keys: their shape, what is kept of them, and finding out whose one is.

A key is `sk-bl-` + 64 hex of 32 random bytes. Kept are its first characters, which people see in
lists, and its SHA-256. A slow or salted hash would add nothing: those make guessing a *chosen* word
expensive, and nobody guesses 256 random bits (decision 0008).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from batchline.domain.ids import DEFAULT_PROJECT, KeyId, ProjectId

SECRET_BYTES: Final = 32
_MARK: Final = "sk-bl-"  # tells people and secret scanners what it is
_SHOWN_CHARS: Final = len(_MARK) + 8  # 32 of 256 bits are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is kept of a key. It works until `revoked_at` is set, and never again after that."""

    id: KeyId
    project_id: ProjectId
    project_name: str
    prefix: str
    digest: bytes = field(repr=False)
    created_at: int
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. `key_id` is None where no key was needed."""

    project_id: ProjectId
    key_id: KeyId | None = None


KEYLESS: Final = Caller(project_id=DEFAULT_PROJECT)


def new_secret(random: bytes) -> str:
    """A key from SECRET_BYTES random bytes: the only moment at which it exists in one piece."""
    return f"{_MARK}{random.hex()}"


def prefix_of(secret: str) -> str:
    """The part of a key that may be shown."""
    return secret[:_SHOWN_CHARS]


def digest_of(secret: str) -> bytes:
    """The 32 bytes that are kept in the place of a key; any text has some."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class KeyRing:
    """The keys of one server, in memory. Used by the event loop's thread only."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._by_prefix: dict[str, dict[KeyId, ApiKey]] = {}
        for key in keys:
            self.put(key)

    @property
    def is_empty(self) -> bool:
        """Whether there has never been a key. A revoked one is a key: revoking the last one locks
        everybody out, where anything else would let everybody in."""
        return not self._by_prefix

    def put(self, key: ApiKey) -> None:
        """Take in a new key, or what has become of a known one."""
        self._by_prefix.setdefault(key.prefix, {})[key.id] = key

    def caller(self, secret: str) -> Caller | None:
        """Whose key `secret` is; None when it is nobody's, or was revoked.

        Found by the part that is no secret, then compared in constant time: how long an answer
        takes says nothing of the part that is one.
        """
        digest = digest_of(secret)
        for key in self._by_prefix.get(prefix_of(secret), {}).values():
            if hmac.compare_digest(key.digest, digest) and key.revoked_at is None:
                return Caller(project_id=key.project_id, key_id=key.id)
        return None

"""Keys: create, list, revoke. Whose key a request carries is asked of the ring, in memory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from batchline.domain import ids
from batchline.domain.errors import InvalidRequest, NotFound
from batchline.domain.ids import KeyId
from batchline.domain.keys import (
    SECRET_BYTES,
    ApiKey,
    KeyRing,
    digest_of,
    new_secret,
    prefix_of,
)
from batchline.store.contract import Store
from batchline.telemetry import event

PROJECT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Keys:
    """The use cases of keys. `ring` knows of every change before the call that made it returns."""

    def __init__(
        self,
        store: Store,
        ring: KeyRing,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.ring = ring
        self._store = store
        self._clock = clock
        self._random = random

    @classmethod
    async def open(cls, store: Store) -> Self:
        """With a ring of all keys that the store has."""
        return cls(store, KeyRing(await store.list_keys()))

    async def create(self, project_name: str) -> tuple[ApiKey, str]:
        """A new key of the project of that name, and its secret, which cannot be had again.

        Raises:
            InvalidRequest: a project cannot be called that.
        """
        if PROJECT_NAME.fullmatch(project_name) is None:
            raise InvalidRequest(
                "A project's name has 1 to 64 letters, digits, '.', '_' and '-', and begins with a"
                " letter or digit."
            )
        secret = new_secret(self._random(SECRET_BYTES))
        key = await self._store.create_key(
            ApiKey(
                id=ids.key_id(self._random(ids.RANDOM_BYTES)),
                project_id=ids.project_id(self._random(ids.RANDOM_BYTES)),
                project_name=project_name,
                prefix=prefix_of(secret),
                digest=digest_of(secret),
                created_at=int(self._clock()),
            )
        )
        self.ring.put(key)
        event("key_created", key_id=key.id, project_id=key.project_id)
        return key, secret

    async def list(self) -> Sequence[ApiKey]:
        """Every key, oldest first, revoked ones too."""
        return await self._store.list_keys()

    async def revoke(self, key_id: str) -> ApiKey:
        """Revoke the key: no request that comes after this is answered for it.

        Requests that are running end as they would have, and so do its project's batches.

        Raises:
            NotFound: there is no such key.
        """
        key = None
        if ids.is_plausible(key_id):
            key = await self._store.revoke_key(KeyId(key_id), now=int(self._clock()))
        if key is None:
            raise NotFound("There is no key with that id; `batchline keys list` shows all ids.")
        self.ring.put(key)
        event("key_revoked", key_id=key.id, project_id=key.project_id)
        return key

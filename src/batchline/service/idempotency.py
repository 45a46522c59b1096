"""Idempotency keys: a create that is sent twice makes one batch. An extension of the service's API.

A client names a create by a key of its own, in the header `Idempotency-Key` or the body's field
`idempotency_key`. Keys are scoped by the project and kept for a day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

from batchline.domain.errors import InvalidRequest, KeyReused
from batchline.domain.model import DAY_S, Batch
from batchline.service.bodies import wrong_type
from batchline.store.contract import IdempotencyKey, NewBatch, Store

FIELD: Final = "idempotency_key"
MAX_KEY_CHARS: Final = 255
KEPT_S: Final = DAY_S


def parse_key(body: Mapping[str, object], header: str | None) -> str | None:
    """The key of a create; None when it has none.

    Raises:
        InvalidRequest: it is not 1 to MAX_KEY_CHARS printable ASCII characters, or body and header
            have different ones.
    """
    field = body.get(FIELD)
    if field is not None and not isinstance(field, str):
        raise wrong_type(FIELD, "a string", field)
    if field is not None and header is not None and field != header:
        raise _invalid("the header and the body have different keys")
    key = header if field is None else field
    if key is not None and not (
        0 < len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()
    ):
        raise _invalid(f"expected 1 to {MAX_KEY_CHARS} printable ASCII characters")
    return key


async def create_once(store: Store, new: NewBatch, *, key: str, order: object) -> Batch:
    """`new`, created, or the batch that the same `order` made under this key before.

    `order` is a record of every parameter of the create; equal ones have one fingerprint.

    Raises:
        KeyReused: the key stands for another order.
    """
    fingerprint = hashlib.sha256(msgspec.json.encode(order, order="sorted")).hexdigest()
    batch = await store.create_batch_once(
        new,
        IdempotencyKey(key=key, fingerprint=fingerprint, expires_at=new.created_at + KEPT_S),
    )
    if batch is None:
        raise KeyReused(
            "This idempotency key was used before with other parameters.",
            param=FIELD,
            wire_code="idempotency_key_reused",
        )
    return batch


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{FIELD}': {why}.", param=FIELD, wire_code="invalid_value")

"""The ring: whose key a text is."""

from __future__ import annotations

import hmac
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchline.domain import keys
from batchline.domain.ids import KeyId, ProjectId
from batchline.domain.keys import ApiKey, Caller, KeyRing, digest_of, new_secret, prefix_of

SECRET = new_secret(bytes(range(32)))


def key_of(secret: str, *, name: str = "a", revoked_at: int | None = None) -> ApiKey:
    return ApiKey(
        id=KeyId(f"key_{name}"),
        project_id=ProjectId(f"proj_{name}"),
        project_name=name,
        prefix=prefix_of(secret),
        digest=digest_of(secret),
        created_at=1,
        revoked_at=revoked_at,
    )


def test_a_key_shows_an_eighth_of_itself() -> None:
    assert re.fullmatch(r"sk-bl-[0-9a-f]{64}", SECRET)
    assert prefix_of(SECRET) == SECRET[:14]


def test_a_key_leads_to_its_project_and_no_other() -> None:
    other = new_secret(bytes(32))
    ring = KeyRing([key_of(SECRET), key_of(other, name="b")])
    assert ring.caller(SECRET) == Caller(project_id=ProjectId("proj_a"), key_id=KeyId("key_a"))
    assert ring.caller(other) == Caller(project_id=ProjectId("proj_b"), key_id=KeyId("key_b"))


def test_keys_that_begin_alike_are_told_apart() -> None:
    twin = SECRET[:-1] + "0"
    ring = KeyRing([key_of(SECRET), key_of(twin, name="b")])
    assert prefix_of(twin) == prefix_of(SECRET)
    assert ring.caller(SECRET) != ring.caller(twin)
    assert ring.caller(SECRET[:-1] + "1") is None


@given(st.text())
def test_no_other_text_is_a_key(text: str) -> None:
    ring = KeyRing([key_of(SECRET)])
    assert ring.caller(text) is None
    assert ring.caller(SECRET + text) is None or text == ""


def test_a_revoked_key_is_nobodys_and_the_ring_is_not_empty() -> None:
    ring = KeyRing()
    assert ring.is_empty
    ring.put(key_of(SECRET))
    assert ring.caller(SECRET) is not None
    ring.put(replace(key_of(SECRET), revoked_at=2))
    assert ring.caller(SECRET) is None
    assert not ring.is_empty


def test_what_is_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(keys, "hmac", type("Watched", (), {"compare_digest": compare}))
    ring = KeyRing([key_of(SECRET)])
    wrong = SECRET[:-1] + "0"
    assert ring.caller(wrong) is None
    assert ring.caller(SECRET) is not None
    right = digest_of(SECRET)
    assert compared == [(right, digest_of(wrong)), (right, right)]


def test_a_key_in_memory_does_not_show_its_digest() -> None:
    assert repr(digest_of(SECRET)) not in repr(key_of(SECRET))

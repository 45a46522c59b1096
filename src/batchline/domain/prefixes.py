"""Which lines begin alike: the prompt of a line, and a key that sorts shared beginnings together.

A server with a prefix cache need not compute again what a prompt has in common with one that it has
seen. What counts is how the prompt *begins*, so lines are compared as a chat template writes them:
the tools before the messages, the messages in their order, byte by byte as they stand in the file.

The key of a prompt is a chain of digests, each of everything up to one of the BOUNDARIES. Sorted by
it, lines come in the order of a walk through the tree of their prefixes, which is the best order
there is for a cache that holds a prompt or more (SGLang, arXiv:2312.07104).
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import google_crc32c
import msgspec
from msgspec import Raw

from batchline.domain.model import Endpoint

_NONE: Final = Raw(b"")
_LEVELS: Final = 32


def _boundaries() -> tuple[int, ...]:
    # 256 bytes are some 64 tokens; less is not worth an order of its own. Each next one is a
    # quarter further on: at most a fifth of what two prompts share goes unseen, and 32 reach to
    # 250 KB.
    found = [256]
    while len(found) < _LEVELS:
        found.append(found[-1] * 5 // 4 // 64 * 64)
    return tuple(found)


BOUNDARIES: Final = _boundaries()

DIGEST_BYTES: Final = 4
KEY_BYTES: Final = _LEVELS * DIGEST_BYTES

# The first levels' pieces of a prompt, and how a chain of each length is packed.
_PIECES: Final = tuple(pairwise((0, *BOUNDARIES)))
_PACKS: Final = tuple(struct.Struct(f">{levels}I").pack for levels in range(_LEVELS + 1))

_crc: Final = google_crc32c.extend

# msgspec.DecodeError and UnicodeDecodeError are both ValueErrors.
_UNREADABLE: Final = (ValueError, RecursionError)


class _ChatBody(msgspec.Struct, gc=False):
    messages: Raw = _NONE
    tools: Raw = _NONE
    functions: Raw = _NONE
    documents: Raw = _NONE
    chat_template: Raw = _NONE
    cache_salt: Raw = _NONE


class _Chat(msgspec.Struct, gc=False):
    body: _ChatBody


class _CompletionBody(msgspec.Struct, gc=False):
    prompt: Raw = _NONE
    cache_salt: Raw = _NONE


class _Completion(msgspec.Struct, gc=False):
    body: _CompletionBody


class _ResponseBody(msgspec.Struct, gc=False):
    input: Raw = _NONE
    instructions: Raw = _NONE
    tools: Raw = _NONE
    cache_salt: Raw = _NONE


class _Response(msgspec.Struct, gc=False):
    body: _ResponseBody


class _LimitBody(msgspec.Struct, gc=False):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None


class _Limit(msgspec.Struct, gc=False):
    body: _LimitBody


_decode_chat: Final = msgspec.json.Decoder(_Chat).decode
_decode_completion: Final = msgspec.json.Decoder(_Completion).decode
_decode_response: Final = msgspec.json.Decoder(_Response).decode
_decode_limit: Final = msgspec.json.Decoder(_Limit).decode

Prompt = Callable[[bytes], bytes]


def prompt_of(endpoint: str) -> Prompt | None:
    """How to find the prompt in the bytes of a validated line; None where nothing is generated.

    What it finds is for comparing only: the parts of the body that a server's template puts into
    the prompt, in that order. It is empty for a line that it cannot read.
    """
    match endpoint:
        case Endpoint.CHAT_COMPLETIONS:
            return _of_chat
        case Endpoint.COMPLETIONS:
            return _of_completion
        case Endpoint.RESPONSES:
            return _of_response
        case _:
            return None


def _of_chat(raw: bytes) -> bytes:
    try:
        body = _decode_chat(raw).body
    except _UNREADABLE:
        return b""
    # A salt comes first: servers share nothing between different ones.
    return b"".join(
        (
            body.cache_salt,
            body.chat_template,
            body.tools,
            body.functions,
            body.documents,
            body.messages,
        )
    )


def _of_completion(raw: bytes) -> bytes:
    try:
        body = _decode_completion(raw).body
    except _UNREADABLE:
        return b""
    return b"".join((body.cache_salt, body.prompt))


def _of_response(raw: bytes) -> bytes:
    try:
        body = _decode_response(raw).body
    except _UNREADABLE:
        return b""
    return b"".join((body.cache_salt, body.tools, body.instructions, body.input))


def output_limit(raw: bytes) -> int | None:
    """The most tokens that a validated line lets its answer have; None where it does not say."""
    try:
        body = _decode_limit(raw).body
    except _UNREADABLE:
        return None  # of another type: the backend's to judge
    given = (body.max_completion_tokens, body.max_output_tokens, body.max_tokens)
    return next((limit for limit in given if limit is not None and limit > 0), None)


def key_of(prompt: bytes) -> bytes:
    """The KEY_BYTES of a prompt: a digest for each boundary that it reaches, then zeros.

    0.15 us for each level. A clash of digests puts strangers side by side and does no other harm.
    """
    crc = 0
    size = len(prompt)
    chain = []
    for start, stop in _PIECES:
        if stop > size:
            break
        crc = _crc(crc, prompt[start:stop])
        chain.append(crc)
    return _PACKS[len(chain)](*chain).ljust(KEY_BYTES, b"\0")


def levels_of(key: bytes) -> int:
    """How many boundaries the prompt of `key` reaches."""
    return -(-len(key.rstrip(b"\0")) // DIGEST_BYTES)


def shared_levels(one: bytes, other: bytes) -> int:
    """Up to how many boundaries two prompts are the same."""
    differing = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    equal_bytes = len(one) - (differing.bit_length() + 7) // 8
    # Where both prompts have ended their zeros are equal too, and stand for nothing.
    return min(equal_bytes // DIGEST_BYTES, levels_of(one))


def shared_bytes(levels: int) -> int:
    """How many bytes of prompt `levels` are, at least."""
    return BOUNDARIES[levels - 1] if levels else 0


def trunk_of(keys: Sequence[bytes]) -> bytes:
    """The beginning of a key that more than half of `keys` have in common, as far as it goes.

    What nearly every line begins with is in every cache anyway: it makes nobody a neighbour.
    """
    # Sorted, they lie side by side, and so many that the one in the middle is among them.
    ordered = sorted(keys)
    middle = ordered[len(ordered) // 2] if ordered else b""
    trunk = b""
    while any(digest := middle[len(trunk) : len(trunk) + DIGEST_BYTES]):
        longer = trunk + digest
        agreeing = bisect_right(ordered, longer.ljust(KEY_BYTES, b"\xff"))
        agreeing -= bisect_left(ordered, longer)
        if 2 * agreeing <= len(ordered):
            break
        trunk = longer
    return trunk


def neighbours(one: bytes, other: bytes, trunk: bytes) -> bool:
    """Whether two prompts share more than either has from the trunk."""
    if one.startswith(trunk) and other.startswith(trunk):  # as nearly always
        following = one[len(trunk) : len(trunk) + DIGEST_BYTES]
        return following == other[len(trunk) : len(trunk) + DIGEST_BYTES] and any(following)
    whole = trunk.ljust(KEY_BYTES, b"\0")
    return shared_levels(one, other) > min(shared_levels(one, whole), shared_levels(other, whole))


def branch(key: bytes, trunk: bytes) -> int:
    """Where a prompt leaves the trunk, and how it goes on; 0 when it ends first.

    Two prompts are `neighbours` when theirs is the same and not 0. `key` may lack its zeros.
    """
    level = len(trunk) // DIGEST_BYTES
    if not key.startswith(trunk):
        level = shared_levels(key.ljust(KEY_BYTES, b"\0"), trunk.ljust(KEY_BYTES, b"\0"))
    at = level * DIGEST_BYTES
    following = int.from_bytes(key[at : at + DIGEST_BYTES], "big")
    return level << 8 * DIGEST_BYTES | following if following else 0


def group_hash(key: bytes, levels: int, piece: int) -> int:
    """A number for the lines that share `levels` of `key`: never 0, the same in every batch.

    `piece` tells parts of a large group apart, so that one prefix can be at work in many places.
    """
    hashed = blake2b(key[: levels * DIGEST_BYTES], digest_size=8, salt=piece.to_bytes(8, "big"))
    # Even, so that it is not taken for `plan.FOLLOWS`, which has every bit set.
    return int.from_bytes(hashed.digest(), "big") & ~1 or 2

"""The bytes of one output or error line, and what a backend's answer says.

A line is spliced, never re-serialised: the custom_id is the token that came in, the body is what
the backend sent, apart from line breaks between its tokens, which become spaces. An answer that
could break the line or the file is not usable, and `usable_body` says so before anything is
spliced.
"""

from __future__ import annotations

import re
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from batchline.domain.model import Usage


class Failure(StrEnum):
    """Why a line has no HTTP answer: the `error.code` of its line in the error file.

    The first three are the API's; the others are ours (docs/compatibility.md).
    """

    BATCH_CANCELLED = "batch_cancelled"
    BATCH_EXPIRED = "batch_expired"
    REQUEST_TIMEOUT = "request_timeout"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    INVALID_UPSTREAM_RESPONSE = "invalid_upstream_response"
    RESPONSE_TOO_LARGE = "response_too_large"
    WORKER_LOST = "worker_lost"
    MODEL_NOT_FOUND = "model_not_found"


MESSAGES: Final = MappingProxyType(
    {
        Failure.BATCH_CANCELLED: ("This request was not executed because the batch was cancelled."),
        Failure.BATCH_EXPIRED: (
            "This request could not be executed before the completion window expired."
        ),
        Failure.REQUEST_TIMEOUT: "The request timed out.",
        Failure.UPSTREAM_UNREACHABLE: "The backend broke the connection before it answered.",
        Failure.INVALID_UPSTREAM_RESPONSE: (
            "The backend's answer was broken HTTP or not usable JSON."
        ),
        Failure.RESPONSE_TOO_LARGE: "The backend's answer was larger than is allowed here.",
        Failure.WORKER_LOST: "The worker process ended each time it ran this request.",
        Failure.MODEL_NOT_FOUND: "No backend serves the model of this request.",
    }
)

# Above this a backend's token count is taken for nonsense; sums of it must fit 64 bits.
_MAX_TOKENS: Final = 10**12

# A usage or an error above this is nonsense too, and is not decoded: as Python objects 60 MiB of
# `{},` take over a gigabyte and seconds, which would end the worker or hang it.
_MAX_TOLD_BYTES: Final = 64 * 1024

_NO_USAGE: Final = Usage()

_WHITE: Final = b" \t\r\n"
# As numbers: to look for a byte as bytes of length one takes ten times as long.
_LF: Final = 10
_CR: Final = 13

REQUEST_ID_DIGITS: Final = 32  # of a line id, where the backend gives none
_VISIBLE_ASCII: Final = re.compile(r"[!#-\[\]-~]{1,128}")  # without the quote and the backslash

# msgspec.DecodeError and UnicodeDecodeError are both ValueErrors.
_UNREADABLE: Final = (ValueError, RecursionError)


_RESULT: Final = (
    b'{"id":"%b","custom_id":%b,'
    b'"response":{"status_code":%d,"request_id":"%b","body":%b},"error":null}\n'
)

# The head of every line, up to what its request's own lines share.
_HEAD: Final = re.compile(rb'\{"id":"[^"]*+","custom_id":"(?:[^"\\]++|\\.)*+"')

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=_MAX_TOKENS)]


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Tokens = 0
    reasoning_tokens: _Tokens = 0


class _Told(msgspec.Struct, gc=False):
    """Usage as most backends tell it, under either API's names."""

    prompt_tokens: _Tokens | UnsetType = UNSET
    completion_tokens: _Tokens = 0
    input_tokens: _Tokens = 0
    output_tokens: _Tokens = 0
    total_tokens: _Tokens = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Usual(msgspec.Struct, gc=False):
    usage: _Told | None = None
    error: Raw | UnsetType = UNSET


class _Success(msgspec.Struct, gc=False):
    usage: Raw = Raw(b"null")  # any shape: a wrong one is unknown usage, not a bad answer


class _Error(msgspec.Struct, gc=False):
    error: Raw = Raw(b"null")
    object: Raw = Raw(b"null")


class _ErrorOrMore(msgspec.Struct, gc=False):
    """Members that answers with a result have; an answer with none of them has no result."""

    error: Raw = Raw(b"null")
    id: Raw | UnsetType = UNSET
    choices: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    output: Raw | UnsetType = UNSET
    results: Raw | UnsetType = UNSET


class _Numbered(msgspec.Struct, gc=False):
    code: object = None
    status_code: object = None


_decode_usual: Final = msgspec.json.Decoder(_Usual).decode
_decode_success: Final = msgspec.json.Decoder(_Success).decode
_decode_error: Final = msgspec.json.Decoder(_Error).decode
_decode_error_or_more: Final = msgspec.json.Decoder(_ErrorOrMore).decode
_decode_numbered: Final = msgspec.json.Decoder(_Numbered).decode
_decode_raw: Final = msgspec.json.Decoder(Raw).decode
_encode: Final = msgspec.json.encode


# -- lines -------------------------------------------------------------------------------------


def result_line(
    line_id: str, custom_id_raw: bytes, status: int, request_id: str, body: bytes
) -> bytes:
    """The line of a request that got an HTTP answer, whatever its status, newline included.

    `request_id` comes from `request_id_of`, `body` from `usable_body` or `error_body`.
    """
    return _RESULT % (line_id.encode(), custom_id_raw, status, request_id.encode(), body)


def failure_line(line_id: str, custom_id_raw: bytes, failure: Failure) -> bytes:
    """The line of a request without an HTTP answer, newline included."""
    return with_tail(line_id, custom_id_raw, failure_tail(failure))


def common_tail(line: bytes) -> bytes:
    """What the line of an identical request has behind its own id and custom_id."""
    head = _HEAD.match(line)
    if head is None:
        raise ValueError("not a line that was made here")
    return line[head.end() :]


def with_tail(line_id: str, custom_id_raw: bytes, tail: bytes) -> bytes:
    """The line of a request that another one ran for."""
    return b'{"id":"%b","custom_id":%b%b' % (line_id.encode(), custom_id_raw, tail)


def failure_tail(failure: Failure) -> bytes:
    """What follows the custom_id in every line of `failure`, newline included."""
    error = _encode({"code": failure.value, "message": MESSAGES[failure]})
    return b',"response":null,"error":%b}\n' % error


def error_body(status: int, size: int) -> bytes:
    """The envelope that stands in for an unusable error answer of `size` bytes: no byte of it."""
    message = f"The backend answered with status {status} and {size} bytes that are not JSON."
    envelope = {"message": message, "type": "upstream_error", "param": None, "code": None}
    return _encode({"error": envelope})


def request_id_of(header: str | None, line_id: str) -> str:
    """The backend's own request id where it is presentable, else the 32 hex of the line id.

    Presentable: 1 to 128 characters of visible ASCII without quote and backslash.
    """
    if header is not None and _VISIBLE_ASCII.fullmatch(header):
        return header
    return line_id[-REQUEST_ID_DIGITS:]


# -- answers -----------------------------------------------------------------------------------


def read_success(raw: bytes) -> tuple[bytes, Usage] | None:
    """The usable body and the usage of a 2xx answer; None when it is not usable."""
    # Perhaps only an array, or a usage of an unusual shape: legal all the same.
    body = usable_body(raw)
    return None if body is None else (body, usage_of(body))


def read_usual(raw: bytes) -> tuple[bytes, Usage] | None:
    """`read_success` in one decode, of an answer as nearly all are: an object without an `error`.

    None means: ask `read_success` and `status_of_error_alone`.
    """
    try:
        told = _decode_usual(raw)
        if not raw.isascii():
            raw.decode()  # msgspec does not check what it skips
    except _UNREADABLE:
        return None
    if told.error is not UNSET and bytes(told.error) != b"null":
        return None
    body = raw.strip(_WHITE)
    if _LF in body or _CR in body:
        body = _one_line(body)
    usage = told.usage
    if usage is None:
        return body, _NO_USAGE
    # Chat, completions and embeddings say prompt and completion, the Responses API input and
    # output; the names decide, since some backends serve the one shape at the other's path.
    if (into := usage.prompt_tokens) is UNSET:
        into, cached = usage.input_tokens, usage.input_tokens_details
        out, reasoning = usage.output_tokens, usage.output_tokens_details
    else:
        cached = usage.prompt_tokens_details
        out, reasoning = usage.completion_tokens, usage.completion_tokens_details
    # By position, as are other calls that each line makes: by name they cost twice as much.
    return body, Usage(
        into,
        0 if cached is None else cached.cached_tokens,
        out,
        0 if reasoning is None else reasoning.reasoning_tokens,
        usage.total_tokens,
    )


def usable_body(raw: bytes) -> bytes | None:
    """The answer as it goes into a line, or None: not JSON, not UTF-8, neither object nor array.

    JSON here is the strict kind: no NaN, no lone surrogates, no nesting past the recursion limit.
    """
    try:
        _decode_raw(raw)
        if not raw.isascii():
            raw.decode()  # msgspec does not check what it skips
    except _UNREADABLE:
        return None
    body = _one_line(raw)
    return body if body[:1] in (b"{", b"[") else None


def _one_line(valid: bytes) -> bytes:
    """Valid JSON without white space around it and without line breaks, which JSON has only
    between tokens."""
    body = valid.strip(_WHITE)
    if _LF in body:
        body = body.replace(b"\n", b" ")
    if _CR in body:
        body = body.replace(b"\r", b" ")
    return body


def usage_of(body: bytes) -> Usage:
    """The usage that a usable body tells; zeros for what it does not tell or tells wrongly."""
    try:
        told = _decode_told(_decode_success(body).usage)
    except _UNREADABLE:
        return _NO_USAGE
    if not isinstance(told, dict):
        return _NO_USAGE
    into, out = ("prompt", "completion") if "prompt_tokens" in told else ("input", "output")
    cached = told.get(f"{into}_tokens_details")
    reasoning = told.get(f"{out}_tokens_details")
    return Usage(
        input_tokens=_tokens(told.get(f"{into}_tokens")),
        cached_tokens=_tokens(cached.get("cached_tokens")) if isinstance(cached, dict) else 0,
        output_tokens=_tokens(told.get(f"{out}_tokens")),
        reasoning_tokens=(
            _tokens(reasoning.get("reasoning_tokens")) if isinstance(reasoning, dict) else 0
        ),
        total_tokens=_tokens(told.get("total_tokens")),
    )


def _decode_told(raw: Raw) -> object:
    """What a backend says in a field that may have any shape; None when that is too much to be
    meant."""
    return None if len(memoryview(raw)) > _MAX_TOLD_BYTES else msgspec.json.decode(raw)


def _tokens(value: object) -> int:
    if type(value) is int and 0 <= value <= _MAX_TOKENS:  # a bool is an int to isinstance
        return value
    return 0


def status_of_error_alone(body: bytes) -> int | None:
    """The status that a 2xx answer stands for whose body is an error and nothing else; or None.

    Gateways answer so when a model failed after they had said 200. The status is the one that the
    error names (`code` or `status_code`, of 400 to 599), or 500.
    """
    if len(body) > _MAX_TOLD_BYTES or b'"error"' not in body:
        return None
    try:
        found = _decode_error_or_more(body)
    except _UNREADABLE:
        return None
    results = (found.id, found.choices, found.data, found.output, found.results)
    if bytes(found.error) in (b"null", b"false", b'""') or results != (UNSET,) * len(results):
        return None
    try:
        told = _decode_numbered(found.error)
    except _UNREADABLE:
        return 500
    named = [n for n in (told.code, told.status_code) if type(n) is int and 400 <= n < 600]
    return named[0] if named else 500


def has_error(body: bytes) -> bool:
    """Whether an answer has an error as the API has it, or as vLLM once had it (no envelope)."""
    try:
        found = _decode_error(body)
    except _UNREADABLE:
        return False
    return bytes(found.error) != b"null" or bytes(found.object) == b'"error"'


def error_code_of(body: bytes) -> str | None:
    """`error.code` of an error answer, or `error.type` where the code is not a string.

    vLLM's and Ollama's ways to say that they have no such model are given the API's name.
    """
    try:
        error = _decode_told(_decode_error(body).error)
    except _UNREADABLE:
        return None
    if not isinstance(error, dict):
        return None
    kind = error.get("type")
    if kind == "NotFoundError" and error.get("param") == "model":
        return "model_not_found"
    code = error.get("code")
    if kind == "not_found_error" and code is None:
        message = error.get("message")  # Ollama's: model "x" not found, try pulling it first
        if isinstance(message, str) and message.startswith("model "):
            return "model_not_found"
    return next((e for e in (code, kind) if isinstance(e, str)), None)

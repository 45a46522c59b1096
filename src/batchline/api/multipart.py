"""`multipart/form-data` from the request's stream straight into an upload.

python-multipart's low-level parser is fed chunk by chunk. Its callbacks are synchronous, so they
only collect; the writes are awaited after each chunk, which is also what holds back a client that
sends faster than the disk takes. Starlette's own form parser was not taken: it spools every file to
a second, temporary one (230 MB/s against over 600).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from batchline.domain.errors import InvalidRequest
from batchline.domain.model import File, Purpose
from batchline.service.batches import missing
from batchline.service.files import Upload, check_expiry, parse_purpose, too_large

MAX_FIELDS: Final = 32  # the official SDKs send four at most
MAX_FIELD_BYTES: Final = 4 * 1024
MAX_HEADERS: Final = 8  # in one part; three are in use
MAX_HEADER_BYTES: Final = 8 * 1024  # one line of a part's headers: long filenames are in there
FORM_BYTES: Final = 1024 * 1024  # what a body may hold beside the file: fields, headers, epilogue
DEFAULT_FILENAME: Final = "upload"  # what the Python SDK calls plain bytes

_ANCHOR: Final = "expires_after.anchor"
_SECONDS: Final = "expires_after.seconds"
_KNOWN: Final = frozenset({"purpose", _ANCHOR, _SECONDS})
# The SDKs write brackets, Azure's examples write dots.
_BRACKETED: Final = re.compile(r"(\w+)\[(\w+)\]")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # PostgreSQL refuses NUL; headers all of them
_ESCAPES: Final = (("%22", '"'), ("%0D", "_"), ("%0A", "_"))  # what HTML's form encoding escapes
_PLAIN_ENCODINGS: Final = frozenset({b"", b"7bit", b"8bit", b"binary"})

# The parser warns about each malformed body and quotes its characters; the caller hears of it.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


async def receive_file(request: Request, upload: Upload, *, max_bytes: int) -> File:
    """Read the form, write its `file` to `upload` as it comes, and finish the upload.

    Parts may come in any order, with or without a Content-Length. `max_bytes` is the size that the
    file may have: a body that says or shows that it is longer is refused without reading on.

    Raises:
        InvalidRequest: the form is not well-formed, or not what 1.1 of the contract asks for.
        ClientDisconnect: the client went away.
    """
    limit_bytes = max_bytes + FORM_BYTES
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit_bytes:
        raise too_large()
    form = _Form(upload=upload)
    parser = _parser(request.headers.get("content-type", ""), form)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit_bytes:
            raise too_large()
        try:
            parser.write(chunk)
        except FormParserError as exc:
            raise _malformed() from exc
        for step in form.take():
            await form.follow(step)
    if not form.ended:
        raise _malformed()
    return await form.finish()


def _parser(content_type: str, form: _Form) -> MultipartParser:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest(
            "Invalid content type: expected 'multipart/form-data' with a boundary."
        )
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_part_data": form.on_part_data,
                "on_part_end": form.on_part_end,
                "on_end": form.on_end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
    except FormParserError as exc:  # a boundary longer than any client makes
        raise _malformed() from exc


@dataclass(frozen=True, slots=True)
class _Begin:
    """A part begins: its name in dotted form, and its filename if it has one."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class _End:
    """The part is complete."""


_Step = _Begin | bytes | _End


@dataclass(slots=True, kw_only=True)
class _Form:
    """What the parser saw and what became of it. The `on_…` methods are the parser's."""

    upload: Upload
    ended: bool = False
    _steps: list[_Step] = field(default_factory=list)
    _header_name: bytes = b""
    _header_value: bytes = b""
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _parts: int = 0
    _current: str = ""
    _text: bytes = b""
    _fields: dict[str, str] = field(default_factory=dict)
    _filename: str | None = None
    _purpose: Purpose | None = None

    # -- the parser's callbacks: no awaiting here ------------------------------------------------

    def on_part_begin(self) -> None:
        self._headers = {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value.strip()
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        encoding = self._headers.get(b"content-transfer-encoding", b"").lower()
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name")
        if name is None or encoding not in _PLAIN_ENCODINGS:
            raise _malformed()
        filename = options.get(b"filename")
        dotted = _BRACKETED.sub(r"\1.\2", name.decode("utf-8", "replace"))
        self._steps.append(_Begin(dotted, None if filename is None else _filename(filename)))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._steps.append(data[start:end])

    def on_part_end(self) -> None:
        self._steps.append(_End())

    def on_end(self) -> None:
        self.ended = True

    # -- what follows from them ------------------------------------------------------------------

    def take(self) -> Sequence[_Step]:
        """What the last chunk brought, in order."""
        steps, self._steps = self._steps, []
        return steps

    async def follow(self, step: _Step) -> None:
        match step:
            case bytes() if self._current == "file":
                await self.upload.write(step)
            case bytes():
                if len(self._text) + len(step) > MAX_FIELD_BYTES:
                    raise InvalidRequest(f"The form field '{self._current[:64]}' is too long.")
                self._text += step
            case _Begin():
                self._begin(step)
            case _End():
                self._end()

    def _begin(self, part: _Begin) -> None:
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise InvalidRequest(f"Too many form fields: at most {MAX_FIELDS} are read.")
        self._current, self._text = part.name, b""
        if part.name == "file":
            if self._filename is not None:
                raise InvalidRequest("Only one 'file' can be uploaded at a time.", param="file")
            self._filename = part.filename or DEFAULT_FILENAME

    def _end(self) -> None:
        name = self._current
        if name not in _KNOWN:  # a field that is not understood is passed over, as headers are
            return
        if name in self._fields:
            raise InvalidRequest(f"The form field '{name}' was given twice.", param=name)
        self._fields[name] = self._text.decode("utf-8", "replace")
        if name == "purpose":  # at once: SDKs that send it first need not send the file then
            self._purpose = parse_purpose(self._fields[name])

    async def finish(self) -> File:
        if self._filename is None:
            raise InvalidRequest("'file' is a required property", param="file")
        if self._purpose is None:
            raise InvalidRequest("'purpose' is a required property", param="purpose")
        return await self.upload.finish(
            filename=self._filename,
            purpose=self._purpose,
            expires_after_s=self._expires_after_s(),
        )

    def _expires_after_s(self) -> int | None:
        anchor, seconds = self._fields.get(_ANCHOR), self._fields.get(_SECONDS)
        if anchor is None and seconds is None:
            return None
        if anchor is None or seconds is None:
            raise missing(_ANCHOR if anchor is None else _SECONDS)
        if anchor != "created_at":
            raise InvalidRequest(
                f"Invalid value: '{anchor}'. Value must be 'created_at'.",
                param=_ANCHOR,
                wire_code="invalid_value",
            )
        if _INTEGER.fullmatch(seconds) is None:
            raise InvalidRequest(
                f"Invalid type for '{_SECONDS}': expected an integer, but got a string instead.",
                param=_SECONDS,
                wire_code="invalid_type",
            )
        return check_expiry(int(seconds), param=_SECONDS)


def _filename(raw: bytes) -> str:
    """The name as the uploader has it: UTF-8, a double quote sent as %22, no control characters."""
    name = raw.decode("utf-8", "replace")
    for escape, character in _ESCAPES:
        name = name.replace(escape, character)
    return _CONTROL.sub("_", name)


def _malformed() -> InvalidRequest:
    return InvalidRequest("The multipart form could not be parsed: it is malformed or cut short.")

"""`multipart/form-data` from the request's stream: its one binary part straight into a blob.

python-multipart's low-level parser is fed chunk by chunk. Its callbacks are synchronous, so they
only collect; the writes are awaited after each chunk, which is also what holds back a client that
sends faster than the disk takes. Starlette's own form parser was not taken: it spools every file to
a second, temporary one (230 MB/s against over 600).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from batchline.api.request import refuse_compressed
from batchline.domain.errors import InvalidRequest
from batchline.service.file_rules import printable_name, too_large

MAX_FIELDS: Final = 32  # the official SDKs send four at most
MAX_FIELD_BYTES: Final = 4 * 1024
MAX_HEADERS: Final = 8  # in one part; three are in use
MAX_HEADER_BYTES: Final = 8 * 1024  # one line of a part's headers: long filenames are in there
FORM_BYTES: Final = 1024 * 1024  # what a body may hold beside the file: fields, headers, epilogue
DEFAULT_FILENAME: Final = "upload"  # what the Python SDK calls plain bytes

# The SDKs write brackets, Azure's examples write dots.
_BRACKETED: Final = re.compile(r"(\w+)\[(\w+)\]")
_ESCAPES: Final = (("%22", '"'), ("%0D", "_"), ("%0A", "_"))  # what HTML's form encoding escapes
_PLAIN_ENCODINGS: Final = frozenset({b"", b"7bit", b"8bit", b"binary"})

# The parser warns about each malformed body and quotes its characters; the caller hears of it.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class Sink(Protocol):
    """Who takes the bytes of the binary part, and refuses those that are too many."""

    async def write(self, chunk: bytes) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedForm:
    """What came beside the bytes: the binary part's filename, and the fields that are known."""

    filename: str
    fields: Mapping[str, str]


async def receive_form(
    request: Request,
    sink: Sink,
    *,
    binary: str,
    max_bytes: int,
    fields: Mapping[str, Callable[[str], object]],
) -> ReceivedForm:
    """Read the form and write its part `binary` to `sink` as it comes.

    Parts may come in any order, with or without a Content-Length. `max_bytes` is what the binary
    part may have: a body that says or shows that it is longer is refused without reading on.
    `fields` names the fields that are known, in dotted form, each with what looks at its value as
    soon as it is there; other fields are passed over.

    Raises:
        InvalidRequest: the form is not well-formed, `binary` is missing or there twice, or one of
            `fields` refused its value.
        UnsupportedEncoding: the body is compressed.
        ClientDisconnect: the client went away.
    """
    refuse_compressed(request)
    limit_bytes = max_bytes + FORM_BYTES
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit_bytes:
        raise too_large()
    form = _Form(sink=sink, binary=binary, known=fields)
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
    return form.received()


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

    sink: Sink
    binary: str
    known: Mapping[str, Callable[[str], object]]
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
            case bytes() if self._current == self.binary:
                await self.sink.write(step)
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
        if part.name == self.binary:
            if self._filename is not None:
                raise InvalidRequest(
                    f"Only one '{self.binary}' can be uploaded at a time.", param=self.binary
                )
            self._filename = part.filename or DEFAULT_FILENAME

    def _end(self) -> None:
        name = self._current
        look_at = self.known.get(name)
        if look_at is None:  # a field that is not understood is passed over, as headers are
            return
        if name in self._fields:
            raise InvalidRequest(f"The form field '{name}' was given twice.", param=name)
        self._fields[name] = self._text.decode("utf-8", "replace")
        # At once: SDKs that send the fields first need not send the file then.
        look_at(self._fields[name])

    def received(self) -> ReceivedForm:
        if self._filename is None:
            raise InvalidRequest(f"'{self.binary}' is a required property", param=self.binary)
        return ReceivedForm(filename=self._filename, fields=self._fields)


def _filename(raw: bytes) -> str:
    """The name as the uploader has it: UTF-8, a double quote sent as %22, no control characters."""
    name = raw.decode("utf-8", "replace")
    for escape, character in _ESCAPES:
        name = name.replace(escape, character)
    return printable_name(name)


def _malformed() -> InvalidRequest:
    return InvalidRequest("The multipart form could not be parsed: it is malformed or cut short.")

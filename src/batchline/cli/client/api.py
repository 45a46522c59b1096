"""The API as the commands use it: plain HTTP on the standard library, one connection a call.

Nothing here retries: a person, or `watch`, decides about that.
"""

from __future__ import annotations

import http.client
import secrets
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from batchline.cli.outcome import UNREACHABLE, USAGE, CommandFailed
from batchline.config.settings import ApiSettings

Shape = dict[str, Any]  # an object of the API as it came: --json shows it unchanged

TIMEOUT_S: Final = 120.0  # a server that syncs a large upload is quiet for a while
CHUNK_BYTES: Final = 256 * 1024
PAGE: Final = 100


class Refused(CommandFailed):
    """The server answered with an error status."""

    code = "server_refused"

    def __init__(self, message: str, *, status: int) -> None:
        # A refused key is a setting of ours that is wrong.
        super().__init__(message, exit_code=USAGE if status == http.HTTPStatus.UNAUTHORIZED else 1)
        self.status = status


@dataclass(frozen=True, slots=True)
class Download:
    """A file's bytes; `chunks` fails when fewer come than `size` promises."""

    size: int
    chunks: Iterator[bytes]


class Api:
    """The server at `OPENAI_BASE_URL`.

    Raises (every method):
        CommandFailed: no server answers there (exit code UNREACHABLE).
        Refused: it answered with an error.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self.base_url = settings.base_url
        self._parts = urlsplit(settings.base_url)
        self._key = settings.api_key

    # -- batches ---------------------------------------------------------------------------

    def create_batch(self, body: Mapping[str, object]) -> Shape:
        return self._json("POST", "/batches", body=body)

    def batch(self, batch_id: str) -> Shape:
        return self._json("GET", f"/batches/{_segment(batch_id)}")

    def cancel(self, batch_id: str) -> Shape:
        return self._json("POST", f"/batches/{_segment(batch_id)}/cancel")

    def progress(self, batch_id: str) -> Shape | None:
        """How fast the batch goes and what it waits for; None where the server does not tell."""
        return self._if_there(f"/batches/{_segment(batch_id)}/progress")

    def receipt(self, batch_id: str) -> Shape | None:
        """The batch's receipt; None where the server keeps none or does not tell."""
        return self._if_there(f"/batches/{_segment(batch_id)}/receipt")

    def batches(self) -> Iterator[Shape]:
        """Newest first, page by page as they are taken."""
        return self._pages("/batches", PAGE)

    # -- files -----------------------------------------------------------------------------

    def file(self, file_id: str) -> Shape:
        return self._json("GET", f"/files/{_segment(file_id)}")

    def delete_file(self, file_id: str) -> Shape:
        return self._json("DELETE", f"/files/{_segment(file_id)}")

    def files(self, purpose: str | None) -> Iterator[Shape]:
        """Newest first, page by page as they are taken."""
        return self._pages("/files", PAGE, **({} if purpose is None else {"purpose": purpose}))

    def upload(self, path: Path, *, purpose: str) -> Shape:
        """Send a file as a stream.

        Raises:
            CommandFailed: also when it cannot be read, or shrinks while it is sent.
        """
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                boundary = secrets.token_hex(16)
                head, tail = _multipart(boundary, path.name, purpose)
                headers = {
                    "Content-Type": f"multipart/form-data; boundary={boundary}",
                    "Content-Length": str(len(head) + size + len(tail)),
                }
                body = _framed(head, file, size, tail, path)
                with self._call("POST", "/files", body=body, headers=headers) as answer:
                    return self._decoded(answer)
        except IsADirectoryError as exc:
            raise CommandFailed(f"{path}: is not a file") from exc
        except (FileNotFoundError, PermissionError) as exc:
            raise CommandFailed(f"{path}: {exc.strerror}") from exc

    @contextmanager
    def content(self, file_id: str) -> Iterator[Download]:
        """A file's bytes, as a stream."""
        with self._call("GET", f"/files/{_segment(file_id)}/content") as answer:
            size = int(answer.headers.get("Content-Length", "0"))
            yield Download(size, self._chunks(answer, size))

    # -- the rest --------------------------------------------------------------------------

    def models(self) -> list[Shape]:
        found: list[Shape] = self._json("GET", "/models")["data"]
        return found

    # -- HTTP ------------------------------------------------------------------------------

    def _json(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Shape:
        raw = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        path = f"{path}?{urlencode(query)}" if query else path
        with self._call(method, path, body=raw, headers=headers) as answer:
            return self._decoded(answer)

    def _if_there(self, path: str) -> Shape | None:
        try:
            return self._json("GET", path)
        except Refused as exc:
            if exc.status == http.HTTPStatus.NOT_FOUND:
                return None
            raise

    def _pages(self, path: str, limit: int, **query: str) -> Iterator[Shape]:
        page = self._json("GET", path, query={"limit": str(limit), **query})
        while True:
            yield from page["data"]
            if not page["has_more"]:
                return
            after = {"after": page["data"][-1]["id"]}
            page = self._json("GET", path, query={"limit": str(limit), **query, **after})

    @contextmanager
    def _call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """One request and its answer, closed afterwards."""
        connection = self._connection()
        every = {"Authorization": f"Bearer {self._key}", "Connection": "close", **(headers or {})}
        try:
            answer = self._answer(connection, method, self._parts.path + path, body, every)
            if answer.status >= http.HTTPStatus.BAD_REQUEST:
                raise self._refused(answer)
            yield answer
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)

    def _answer(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
        except OSError as exc:
            raise self._unreachable(exc) from exc
        try:
            connection.request(method, path, body=body, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server refused an upload before its end; its answer says why
        except OSError as exc:
            raise self._unreachable(exc) from exc
        try:
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise self._unreachable(exc) from exc

    def _chunks(self, answer: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
        received = 0
        while received < size:
            try:
                chunk = answer.read(min(CHUNK_BYTES, size - received))
            except (OSError, http.client.HTTPException) as exc:
                raise self._unreachable(exc) from exc
            if not chunk:
                raise CommandFailed(
                    f"{self.base_url}: the connection ended after {received} of {size} bytes",
                    exit_code=UNREACHABLE,
                )
            received += len(chunk)
            yield chunk

    def _decoded(self, answer: http.client.HTTPResponse) -> Shape:
        try:
            return msgspec.json.decode(answer.read(), type=Shape)
        except (OSError, http.client.HTTPException) as exc:
            raise self._unreachable(exc) from exc
        except msgspec.DecodeError as exc:
            raise self._no_api(answer) from exc

    def _refused(self, answer: http.client.HTTPResponse) -> CommandFailed:
        try:
            message = msgspec.json.decode(answer.read(), type=Shape)["error"]["message"]
        except (OSError, http.client.HTTPException, msgspec.DecodeError, KeyError, TypeError):
            return self._no_api(answer)
        hint = "" if answer.status != http.HTTPStatus.UNAUTHORIZED else " (OPENAI_API_KEY)"
        return Refused(f"{message}{hint}", status=answer.status)

    def _no_api(self, answer: http.client.HTTPResponse) -> CommandFailed:
        return CommandFailed(
            f"{self.base_url}: something answers there (status {answer.status}), but not as the"
            " API does; set OPENAI_BASE_URL",
            exit_code=UNREACHABLE,
        )

    def _unreachable(self, exc: Exception) -> CommandFailed:
        why = (isinstance(exc, OSError) and exc.strerror) or str(exc) or type(exc).__name__
        return CommandFailed(
            f"{self.base_url}: no server answers ({why}). Start one with `batchline serve`, or"
            " set OPENAI_BASE_URL.",
            exit_code=UNREACHABLE,
        )


def _segment(text: str) -> str:
    return quote(text, safe="")


def _multipart(boundary: str, filename: str, purpose: str) -> tuple[bytes, bytes]:
    """What comes before and after the file's bytes."""
    # As browsers escape it (HTML, "multipart form data").
    name = filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode(errors="surrogateescape"), f"\r\n--{boundary}--\r\n".encode()


def _framed(head: bytes, file: BinaryIO, size: int, tail: bytes, path: Path) -> Iterator[bytes]:
    yield head
    left = size
    while left:
        chunk = file.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise CommandFailed(f"{path}: became shorter while it was sent")
        left -= len(chunk)
        yield chunk
    yield tail

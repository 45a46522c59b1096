"""The HTTP face: `GET /v1/models`, `POST /v1/embeddings` as OpenAI's, and `GET /stats`.

Owns the wire format and the witness's counts; the model and the queue are handed in. Meant for
loopback: no keys, no limits on the size of a body.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .gathering import Gatherer, Tokens

MAX_INPUTS = 2048  # texts in one request, as OpenAI's


class Tokenizer(Protocol):
    """The part of the model that runs before the queue."""

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text, in order."""


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """The body of `POST /v1/embeddings`; fields that are not named here are ignored."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"  # the Python client asks for base64
    dimensions: int | None = None


class Refused(Exception):
    """The request is answered by OpenAI's error envelope."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {
            "message": message,
            "type": "invalid_request_error",
            "param": param,
            "code": code,
        }


@dataclass(slots=True, kw_only=True)
class Stats:
    """What this backend saw of `POST /v1/embeddings`; written by the event loop only.

    `received` = `answered` + `aborted` + `in_flight` at any moment. `answered` includes refusals.
    `aborted`: the client closed the connection before its answer was ready. The instants are Unix
    seconds; `quiet_at` is when the last request in flight ended and null while one is in flight.
    """

    received: int = 0
    answered: int = 0
    aborted: int = 0
    in_flight: int = 0
    last_arrival_at: float | None = None
    quiet_at: float | None = None

    def arrived(self) -> None:
        self.received += 1
        self.in_flight += 1
        self.last_arrival_at = time.time()
        self.quiet_at = None

    def ended(self, *, aborted: bool) -> None:
        self.in_flight -= 1
        if aborted:
            self.aborted += 1
        else:
            self.answered += 1
        if self.in_flight == 0:
            self.quiet_at = time.time()


class Backend:
    """The routes of one model."""

    def __init__(
        self, *, model_id: str, dimensions: int, tokenizer: Tokenizer, gatherer: Gatherer
    ) -> None:
        self._model_id = model_id
        self._dimensions = dimensions
        self._tokenizer = tokenizer
        self._gatherer = gatherer
        self._created_at = int(time.time())
        self.stats = Stats()

    def application(self) -> Starlette:
        """The ASGI application; its lifespan starts and stops the encoding threads."""

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            async with self._gatherer.running():
                yield

        return Starlette(
            routes=[
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/embeddings", self._embeddings, methods=["POST"]),
                Route("/stats", self._stats, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _routing_error, Exception: _server_error},
            lifespan=lifespan,
        )

    async def _models(self, _: Request) -> Response:
        model = {
            "id": self._model_id,
            "object": "model",
            "created": self._created_at,
            "owned_by": "sentence-transformers",
        }
        return _json(200, {"object": "list", "data": [model]})

    async def _stats(self, _: Request) -> Response:
        return _json(200, self.stats)

    async def _embeddings(self, request: Request) -> Response:
        """Answer, or notice that nobody waits for the answer any more."""
        self.stats.arrived()
        gone = True
        try:
            body = await request.body()
            answer = asyncio.create_task(self._answer(body))
            leaving = asyncio.create_task(_disconnected(request))
            try:
                await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                leaving.cancel()
                if not answer.done():
                    answer.cancel()  # its texts leave the queue
            await asyncio.wait({answer, leaving})
            gone = answer.cancelled()
            # 499 is written to nobody: it only has to be some answer.
            return Response(status_code=499) if gone else answer.result()
        finally:
            # A body that never came in whole (ClientDisconnect) counts as aborted, too.
            self.stats.ended(aborted=gone)

    async def _answer(self, body: bytes) -> Response:
        try:
            wanted = self._parse(body)
            texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
            tokens = self._tokenizer.tokenize(texts)
            vectors = await self._gatherer.embed(tokens)
        except Refused as refused:
            return _json(refused.status, {"error": refused.error})
        used = sum(map(len, tokens))
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if wanted.encoding_format == "base64" else vector,
            }
            for index, vector in enumerate(vectors)
        ]
        return _json(
            200,
            {
                "object": "list",
                "data": data,
                "model": self._model_id,
                "usage": {"prompt_tokens": used, "total_tokens": used},
            },
        )

    def _parse(self, body: bytes) -> EmbeddingsRequest:
        """The request, checked.

        Raises:
            Refused: with the status and envelope of the answer.
        """
        try:
            wanted = msgspec.json.decode(body, type=EmbeddingsRequest)
        except msgspec.ValidationError as exc:
            raise Refused(400, f"Invalid request: {exc}.", code="invalid_value") from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise Refused(400, "We could not parse the JSON body of your request.") from exc
        if wanted.model != self._model_id:
            raise Refused(
                404,
                f"The model '{wanted.model}' does not exist.",
                param="model",
                code="model_not_found",
            )
        if not wanted.input or "" in (wanted.input if isinstance(wanted.input, list) else ()):
            raise Refused(400, "'input' must not be empty.", param="input", code="invalid_value")
        if isinstance(wanted.input, list) and len(wanted.input) > MAX_INPUTS:
            raise Refused(
                400, f"'input' may hold {MAX_INPUTS} texts.", param="input", code="invalid_value"
            )
        if wanted.dimensions not in (None, self._dimensions):
            raise Refused(
                400,
                f"This model has {self._dimensions} dimensions and cannot be cut.",
                param="dimensions",
                code="invalid_value",
            )
        return wanted


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _routing_error(request: Request, exc: Exception) -> Response:
    """404 and 405 of the router, in OpenAI's envelope."""
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    refused = Refused(status, f"Invalid URL ({request.method} {request.url.path})")
    return _json(status, {"error": refused.error})


async def _server_error(_: Request, exc: Exception) -> Response:
    """What this program did not foresee; the traceback is on stderr, the client learns the kind."""
    error = {"message": type(exc).__name__, "type": "server_error", "param": None, "code": None}
    return _json(500, {"error": error})


def _base64(vector: list[float]) -> str:
    """Little-endian float32s, as the Python client decodes them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def _json(status: int, body: object) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")

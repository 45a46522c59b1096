"""Discovery against real sockets on ports of the kernel's choice."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from batchline.cli.serve_output import discovery
from batchline.executor.discovery import USUAL_PLACES, Place, find_local


@asynccontextmanager
async def answering(body: bytes | None) -> AsyncIterator[int]:
    """The port of a server that gives `body` to every request, or nothing at all."""
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        if body is not None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for writer in writers:
            writer.close()


async def test_servers_with_models_are_found_and_named_others_are_passed_over() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with (
            answering(b'{"data": [{"id": "llama3"}]}') as ollama,
            answering(b"<html>some other program</html>") as web,
            answering(None) as silent,
            answering(b'{"data": [{"id": "qwen"}]}') as vllm,
        ):
            ports = (ollama, web, silent, nobody.getsockname()[1], vllm)
            names = ("ollama", "lm-studio", "llama.cpp", "sglang", "vllm")
            found = await find_local(
                [Place(product=name, port=port) for name, port in zip(names, ports, strict=True)]
            )
    assert [(one.backend.name, one.backend.base_url, one.models) for one in found] == [
        ("ollama", f"http://127.0.0.1:{ollama}/v1", ("llama3",)),
        ("vllm", f"http://127.0.0.1:{vllm}/v1", ("qwen",)),
    ]


async def test_all_places_are_asked_at_once() -> None:
    """Nobody answers before all were asked: one after the other would find none."""
    asked = 0
    all_asked = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        if asked == 3:
            all_asked.set()
        await all_asked.wait()
        body = b'{"data": [{"id": "m"}]}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        found = await find_local([Place(product=name, port=port) for name in ("a", "b", "c")])
    finally:
        all_asked.set()
        listener.close()
    assert [one.backend.name for one in found] == ["a", "b", "c"]


async def test_what_was_found_is_said_and_so_is_nothing() -> None:
    async with answering(b'{"data": [{"id": "m"}]}') as port:
        found = await find_local([Place(product="ollama", port=port)])
    assert f"ollama at http://127.0.0.1:{port}/v1" in discovery(found, USUAL_PLACES)
    nothing = discovery([], USUAL_PLACES)
    assert "none answers" in nothing
    for product in ("ollama", "lm-studio", "vllm", "llama.cpp", "sglang"):
        assert product in nothing

"""What was not sent is told from what was, and the gate is asked at the last moment."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import pytest

from batchline.domain.errors import NotAdmitted, NotSent
from tests.contract.transport.raw_server import (
    CERTIFICATE,
    SPEAKS_TLS,
    MakeTransport,
    answering,
    backend,
    http,
    post,
    read_request,
    readable,
    serving,
)

# -- nothing was sent ----------------------------------------------------------------------------


async def test_a_refused_connection_is_not_sent(make: MakeTransport) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refuses, and nobody else gets it
        port = closed.getsockname()[1]
        with pytest.raises(NotSent, match="refused"):
            await post(make(backend(f"http://127.0.0.1:{port}/v1")))


async def test_an_unknown_host_is_not_sent(make: MakeTransport) -> None:
    with pytest.raises(NotSent, match="unknown host"):
        await post(make(backend("http://no-such-host.invalid/v1")))


async def test_a_connect_that_takes_too_long_is_not_sent(make: MakeTransport) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with contextlib.ExitStack() as queued:  # fill the accept queue: further SYNs are dropped
            for _ in range(4):
                waiting = queued.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            settings = backend(f"http://127.0.0.1:{address[1]}/v1", connect_timeout_s=0.1)
            with pytest.raises(NotSent, match=r"0\.1 s"):
                await post(make(settings))


async def test_an_untrusted_certificate_is_not_sent(
    make: MakeTransport, implementation: str
) -> None:
    if implementation not in SPEAKS_TLS:
        return  # by contract http1 serves http:// only
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    asked: list[None] = []

    def before_write() -> bool:
        asked.append(None)
        return True

    async with serving(answering(http(b"{}")), tls=context) as server:
        with pytest.raises(NotSent, match="certificate"):
            await post(make(backend(server.url)), before_write=before_write)
    assert asked == []


async def test_a_trusted_certificate_is_spoken_to(make: MakeTransport, implementation: str) -> None:
    if implementation not in SPEAKS_TLS:
        return  # by contract http1 serves http:// only
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with serving(answering(http(b"{}")), tls=context) as server:
        transport = make(backend(server.url), tls=trusting)
        for _ in range(3):
            assert (await post(transport)).status == 200
    assert server.opened == 1


async def test_a_certificate_of_another_host_is_called_that(
    make: MakeTransport, implementation: str
) -> None:
    if implementation not in SPEAKS_TLS:
        return  # by contract http1 serves http:// only
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    # An address of this machine that is not in the certificate; macOS has it only when told to.
    server = await asyncio.start_server(script, "127.0.0.2", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NotSent, match="certificate of another host"):
            await post(make(backend(f"https://127.0.0.2:{port}"), tls=trusting))


async def test_a_server_that_speaks_no_tls_is_not_sent(
    make: MakeTransport, implementation: str
) -> None:
    if implementation not in SPEAKS_TLS:
        return  # by contract http1 serves http:// only

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(http(b"{}", status="400 Bad Request"))

    async with serving(script) as server:
        with pytest.raises(NotSent):
            await post(make(backend(server.url.replace("http:", "https:"))))


# -- the gate ------------------------------------------------------------------------------------


async def test_what_is_not_admitted_writes_nothing_and_keeps_the_connection(
    make: MakeTransport,
) -> None:
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append((await read_request(reader))[1])
            writer.write(http(b"{}"))

    async with serving(script) as server:
        transport = make(backend(server.url))
        for body in (b"1", b"2"):
            with pytest.raises(NotAdmitted):
                await post(transport, b"no", before_write=lambda: False)
            await post(transport, body)
    assert requests == [b"1", b"2"]
    assert server.opened == 1


async def test_the_gate_is_asked_once_and_in_the_loop_step_of_the_first_write(
    make: MakeTransport,
) -> None:
    """If this fails the gate no longer holds: a request can leave after it was closed."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        transport = make(backend(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"))
        accepting = asyncio.create_task(loop.sock_accept(listener))
        peeks: list[bytes] = []

        def peek() -> None:
            try:
                peeks.append(peer.recv(4, socket.MSG_PEEK))
            except BlockingIOError:
                peeks.append(b"")

        def before_write() -> bool:
            peek()
            loop.call_soon(peek)  # runs before anything that the transport schedules from here on
            return True

        with pytest.raises(NotAdmitted):  # leaves one idle connection, whose far side we hold
            await post(transport, before_write=lambda: False)
        peer = (await accepting)[0]
        with peer:
            sending = asyncio.create_task(post(transport, before_write=before_write))
            # Behind that task's first step, and before a write that a loop has put off to the end
            # of its turn, as some versions of uvloop do.
            loop.call_soon(peek)
            await readable(peer)
            await loop.sock_recv(peer, 65536)
            await loop.sock_sendall(peer, http(b"{}"))
            assert (await sending).status == 200
    assert peeks == [b"", b"POST", b"POST"]

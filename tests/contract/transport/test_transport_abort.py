"""A send that was cancelled has closed its socket when it returns."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from tests.contract.transport.raw_server import (
    CERTIFICATE,
    SOON_S,
    SPEAKS_TLS,
    MakeTransport,
    backend,
    drained,
    never,
    post,
    readable,
    spin_until,
    unanswered,
)


@pytest.mark.parametrize("size", [2, 32 << 20], ids=["all written", "write buffer full"])
@pytest.mark.parametrize("cancels", [1, 3])
async def test_when_a_cancelled_send_has_returned_the_socket_is_closed(
    make: MakeTransport, size: int, cancels: int
) -> None:
    """Looked at from the peer, without giving the loop a step in between.

    If this fails, a cancelled batch can still have a request at a backend after `cancelled`.
    """
    loop = asyncio.get_running_loop()
    states: list[tuple[int, str]] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        transport = make(backend(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"))

        async def send_then_look() -> None:
            try:
                await post(transport, b"x" * size)
            finally:
                states.append(drained(peer))

        sending = asyncio.create_task(send_then_look())
        peer, _ = await loop.sock_accept(listener)
        with peer:  # never read until the send is over
            peer.setblocking(False)
            await readable(peer)
            for _ in range(cancels):
                sending.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await sending
    ((received, end),) = states
    # Not "closed": then the kernel would still deliver what it holds, perhaps the whole request.
    assert end == "reset"
    assert received < 32 << 20


async def test_close_ends_what_is_in_flight_even_when_the_peer_does_not_read(
    make: MakeTransport,
) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        transport = make(backend(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"))
        sending = asyncio.create_task(unanswered(transport, b"x" * (32 << 20)))
        peer, _ = await loop.sock_accept(listener)
        with peer:
            await readable(peer)
            async with asyncio.timeout(SOON_S):
                await transport.close()
                assert await sending == "reset"


async def test_a_send_that_is_cancelled_while_it_connects_leaves_no_connection(
    make: MakeTransport, implementation: str
) -> None:
    if implementation not in SPEAKS_TLS:
        return  # by contract http1 serves http:// only

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with socket.socket() as listener:  # accepts TCP, never answers the TLS greeting
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        sending = asyncio.create_task(post(make(backend(url))))
        loop = asyncio.get_running_loop()
        peer, _ = await loop.sock_accept(listener)
        with peer:
            await readable(peer)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await spin_until(lambda: drained(peer)[1] != "open")

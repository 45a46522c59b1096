"""The worker's end of the socket to the control process."""

from __future__ import annotations

import asyncio
import socket

from batchline.cli.worker_child import _Link
from batchline.executor import messages as m


async def test_what_is_sent_while_the_server_goes_away_is_dropped() -> None:
    """Between the hang-up and `connection_lost` a heartbeat may be due: no reason for a traceback
    in the log of the next server."""
    ours, theirs = socket.socketpair()
    link = _Link()
    with theirs:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
        transport.abort()
        assert not link.ended.done()
        link._send(m.Heartbeat())
        await link.ended
        link._send(m.Heartbeat())

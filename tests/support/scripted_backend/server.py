"""Listening: the port for workers, which can go down and come up, and the control routes."""

from __future__ import annotations

import asyncio
import io
import socket
from typing import Final

import msgspec
from aiohttp import web

from tests.support.scripted_backend.protocol import Connection, Responder
from tests.support.scripted_backend.script import Script
from tests.support.scripted_backend.witness import Wanted, Witness

HOST: Final = "127.0.0.1"
BACKLOG: Final = 4096

_encode: Final = msgspec.json.Encoder().encode


class Release(msgspec.Struct, frozen=True):
    """Which held answers to give; None for all."""

    ids: list[str] | None = None


class Server:
    """One backend: started in its constructor's order by `start`, ended by `stop`."""

    def __init__(self, script: Script, *, port: int = 0, log: io.BufferedWriter | None = None):
        """Reserve the port (0: the kernel chooses); nothing listens before `start`."""
        self.witness = Witness(log)
        self.responder = Responder(script, self.witness)
        # Bound and never listening: while the backend is down its port stays ours, and a connect
        # is refused as it would be by a machine whose server has died.
        self._reserved = _bound(port)
        self.port: int = self._reserved.getsockname()[1]
        self._listening: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen for workers, and for control on a port of its own, which never goes down."""
        await self.come_up()
        routes = web.Application()
        routes.add_routes(
            [
                web.post("/_control/script", self._script),
                web.post("/_control/release", self._release),
                web.post("/_control/stop_holding", self._stop_holding),
                web.post("/_control/wait", self._wait),
                web.post("/_control/down", self._down),
                web.post("/_control/up", self._up),
                web.post("/_control/clear", self._clear),
                web.get("/_control/stats", self._stats),
                web.get("/_control/log", self._log),
            ]
        )
        self._control = web.AppRunner(routes, access_log=None, shutdown_timeout=0.1)
        await self._control.setup()
        await web.TCPSite(self._control, HOST, 0).start()
        self.control_port: int = self._control.addresses[0][1]

    async def stop(self) -> None:
        self.go_down()
        self._reserved.close()
        await self._control.cleanup()

    def go_down(self) -> None:
        """Refuse connections and reset the open ones; safe to call twice."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        self.responder.reset_all()

    async def come_up(self) -> None:
        """Listen on the same port again; safe to call twice."""
        if self._listening is None:
            loop = asyncio.get_running_loop()
            self._listening = await loop.create_server(
                lambda: Connection(self.responder), sock=_bound(self.port), backlog=BACKLOG
            )

    # -- control routes -------------------------------------------------------------------------

    async def _script(self, request: web.Request) -> web.Response:
        self.responder.follow(msgspec.json.decode(await request.read(), type=Script))
        return _answer({})

    async def _release(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=Release)
        return _answer({"released": self.responder.release(wanted.ids)})

    async def _stop_holding(self, _: web.Request) -> web.Response:
        self.responder.holding = False
        return _answer({"released": self.responder.release(None)})

    async def _wait(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=Wanted)
        held = await self.witness.wait(wanted)
        return _answer(self.witness.stats(), status=200 if held else 408)

    async def _down(self, _: web.Request) -> web.Response:
        self.go_down()
        return _answer({})

    async def _up(self, _: web.Request) -> web.Response:
        await self.come_up()
        return _answer({})

    async def _clear(self, _: web.Request) -> web.Response:
        self.witness.clear()
        return _answer({})

    async def _stats(self, _: web.Request) -> web.Response:
        return _answer(self.witness.stats())

    async def _log(self, _: web.Request) -> web.Response:
        return web.Response(body=b"\n".join(map(_encode, self.witness.events)))


def _answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, content_type="application/json")


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((HOST, port))
    return made

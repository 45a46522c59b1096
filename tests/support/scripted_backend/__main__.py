"""`python -m tests.support.scripted_backend`: prints one JSON line with its addresses, then serves.

Runs until SIGTERM, SIGINT, or (asked to) the end of its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import msgspec
import uvloop

from tests.support.scripted_backend.script import Script
from tests.support.scripted_backend.server import HOST, Server


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until told to stop."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if arguments.until_stdin_closes:

        def watch() -> None:
            sys.stdin.buffer.read()
            loop.call_soon_threadsafe(stopped.set)

        threading.Thread(target=watch, daemon=True).start()
    sink = arguments.log.open("ab") if arguments.log else None
    script = msgspec.json.decode(arguments.script, type=Script)
    server = Server(script, port=arguments.port, log=sink)
    await server.start()
    address = {
        "url": f"http://{HOST}:{server.port}",
        "control_url": f"http://{HOST}:{server.control_port}",
        "pid": os.getpid(),
    }
    sys.stdout.write(json.dumps(address) + "\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop()
    if sink is not None:
        sink.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripted_backend", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: the kernel chooses")
    parser.add_argument("--script", default="{}", help="a Script as JSON")
    parser.add_argument("--log", type=Path, help="append every event here as a JSON line")
    parser.add_argument("--until-stdin-closes", action="store_true")
    arguments = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(serve(arguments))


if __name__ == "__main__":
    main()

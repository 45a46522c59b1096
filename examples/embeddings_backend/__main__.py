"""`python -m examples.embeddings_backend`: load the model, listen, say where, serve until SIGTERM.

Owns the process: command line, threads, socket and end. Exit codes: 0 after SIGTERM, SIGINT or the
end of standard input (when asked to heed it), 2 when the model is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Before numpy is imported, or it has no effect. One BLAS thread per encoding thread: two passes
# side by side do 1.9 times the work of one on two cores, one pass on two BLAS threads 1.2 times.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import uvicorn  # noqa: E402  # the environment above comes first
import uvloop  # noqa: E402  # as above

from .app import Backend  # noqa: E402  # as above
from .gathering import Gatherer  # noqa: E402  # as above
from .minilm import (  # noqa: E402  # as above
    DIMENSIONS,
    MODEL_ID,
    MiniLM,
    ModelMissing,
    model_directory,
)

MAX_THREADS: Final = 4  # an example should not take a large machine whole without being asked


class _Server(uvicorn.Server):
    """uvicorn, with its signals left to us: its own handlers end in death by the same signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="embeddings_backend", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001, help="0: the kernel chooses")
    parser.add_argument("--max-tokens", type=int, default=128, help="texts are cut here (2 to 512)")
    parser.add_argument(
        "--threads",
        type=int,
        default=min(MAX_THREADS, os.cpu_count() or 1),
        help="encoding threads",
    )
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end when standard input does, so that no parent can leave this process behind",
    )
    return parser.parse_args(argv)


async def _serve(arguments: argparse.Namespace, listener: socket.socket) -> None:
    model = MiniLM(model_directory(), max_tokens=arguments.max_tokens)
    backend = Backend(
        model_id=MODEL_ID,
        dimensions=DIMENSIONS,
        tokenizer=model,
        gatherer=Gatherer(model.encode, threads=arguments.threads),
    )
    server = _Server(
        uvicorn.Config(
            backend.application(),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,  # a pass lasts well under a second
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    if arguments.until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), _read_stdin, loop, server)
    host, port = listener.getsockname()[:2]
    # The socket listens already: whoever reads this line can connect.
    print(f"listening on http://{host}:{port}", flush=True)
    await server.serve(sockets=[listener])


def _read_stdin(loop: asyncio.AbstractEventLoop, server: _Server) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        server.stop()


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code."""
    arguments = _arguments(argv)
    try:
        with (
            socket.create_server((arguments.host, arguments.port)) as listener,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_serve(arguments, listener))
    except ModelMissing as exc:
        print(exc, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A real llama.cpp on loopback, where `make engines` installed one."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parent
# Not resolved: the interpreter of a virtual environment is a link to another.
PYTHON: Final = Path(
    os.environ.get("BATCHLINE_ENGINES_PYTHON", HERE.parents[1] / ".venv-engines/bin/python")
)
# One's own `llama-server`, to be tried in place of what was installed.
LLAMA_SERVER: Final = os.environ.get("BATCHLINE_LLAMA_SERVER")
START_S: Final = 60.0
SLOTS: Final = 4
CONTEXT: Final = 2048  # tokens of one slot


class LlamaCpp:
    """One server on a port of its own; after `kill` it can be started again there."""

    def __init__(self, model: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.model = model.stem
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = _command(model, self.port, *options)
        self._log = model.with_name(f"{self.port}.log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text(errors="replace")[-2000:]
            with suppress(OSError, HTTPException):
                if self._get("/v1/models")[0] == 200:  # 503 while it reads the model
                    return
            time.sleep(0.05)
        raise AssertionError("llama.cpp did not begin to listen")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def page(self, path: str) -> bytes:
        """What the server says there; it has to be a 200."""
        status, body = self._get(path)
        assert status == 200, body
        return body

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _command(model: Path, port: int, *options: str) -> list[str]:
    slots, context = str(SLOTS), str(SLOTS * CONTEXT)
    if LLAMA_SERVER is None:
        program = [str(PYTHON), str(HERE / "llama_server.py")]
        return [*program, str(model), str(port), slots, context, *options]
    words = ["--port", str(port), "-np", slots, "-c", context, "-t", "1", "--metrics"]
    more = ["--embeddings", "--pooling", "mean"] if options else []
    return [LLAMA_SERVER, "-m", str(model), "--alias", model.stem, *words, *more]


@contextmanager
def llama_cpp(model: Path, *options: str) -> Iterator[LlamaCpp]:
    one = LlamaCpp(model, *options)
    try:
        one.start()
        yield one
    finally:
        one.kill()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `tiny.gguf` (thousands of tokens a second on one core) and `slow.gguf` (some
    hundred)."""
    if not PYTHON.exists():
        pytest.skip("no engine is installed; `make engines` brings one")
    directory = tmp_path_factory.mktemp("models")
    for name, width, layers in (("tiny", 128, 2), ("slow", 512, 8)):
        words = [directory / f"{name}.gguf", width, layers, CONTEXT]
        subprocess.run([PYTHON, HERE / "tiny_gguf.py", *map(str, words)], check=True)
    return directory


@pytest.fixture(scope="session")
def tiny(models: Path) -> Iterator[LlamaCpp]:
    with llama_cpp(models / "tiny.gguf") as one:
        yield one

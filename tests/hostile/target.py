"""A real server under hostile input: what is sent to it byte by byte, and what must hold meanwhile.

`unharmed` is the claim that every case here makes. What it allows in memory is measured from
outside, per process, with the kernel's own high-water mark.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests.contract.api.serving import Reply
from tests.support.pauses import pause
from tests.support.server import ServerProcess
from tests.support.stored import wait_until_rows_and_bytes_agree

MIB: Final = 1024 * 1024
SENTINEL: Final = "sentinel-of-hostile-input"  # in every body; must be in no log
PATIENCE_S: Final = 20.0  # bounds a failure; nothing here is expected to take long
GROWTH_BYTES: Final = 24 * MIB  # of one process over one case: buffers and a busier heap

QUICK_SWEEPS: Final = {"sweep_s": 0.1}


# -- sending -----------------------------------------------------------------------------------


def head(method: str, path: str, headers: Mapping[str, object] | None = None) -> bytes:
    """A request up to its body."""
    lines = {"Host": "localhost", "Authorization": f"Bearer {SENTINEL}", **(headers or {})}
    text = f"{method} {path} HTTP/1.1\r\n"
    return (text + "".join(f"{name}: {value}\r\n" for name, value in lines.items())).encode() + (
        b"\r\n"
    )


def connected(running: ServerProcess) -> socket.socket:
    note = running.note
    assert note is not None
    sock = socket.create_connection(("127.0.0.1", int(str(note["port"]))), timeout=PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def reply_of(sock: socket.socket, *, method: str = "GET") -> Reply:
    """The next answer on a connection, whole; no answer is a failure."""
    answer = http.client.HTTPResponse(sock, method=method)
    answer.begin()
    body = answer.read()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Reply(answer.status, headers, body)


def exchange(
    running: ServerProcess, request: bytes | Iterable[bytes], *, half_close: bool = False
) -> Reply:
    """The answer to these bytes on a connection of their own, read while they are being sent.

    `half_close`: nothing more will come, and the client says so, but still reads.
    """
    pieces = [request] if isinstance(request, bytes) else request
    with closing(connected(running)) as sock:

        def send() -> None:
            with suppress(OSError):  # refused in the middle: the answer says why
                for piece in pieces:
                    sock.sendall(piece)
                if half_close:
                    sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            return reply_of(sock)
        finally:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes a sender whose bytes nobody takes
            sender.join(PATIENCE_S)
            assert not sender.is_alive()


def post(
    running: ServerProcess, path: str, body: bytes, headers: Mapping[str, object] | None = None
) -> Reply:
    """The answer to a whole request with this body."""
    kind = {"Content-Type": "application/json", "Content-Length": len(body)}
    return exchange(running, head("POST", path, {**kind, **(headers or {})}) + body)


def get(running: ServerProcess, path: str) -> Reply:
    return exchange(running, head("GET", path))


def refusal_of(reply: Reply, status: int) -> dict[str, Any]:
    """The error of a refusal with that status, after a look at its envelope and headers."""
    assert (reply.status, reply.error["type"]) == (status, "invalid_request_error"), reply
    return reply.error


# -- what must hold ----------------------------------------------------------------------------


@contextmanager
def unharmed(running: ServerProcess, *, growth_bytes: int = GROWTH_BYTES) -> Iterator[None]:
    """Meanwhile and afterwards the server and its children live and answer others; memory stays
    within `growth_bytes` of what each process had; no blob is left that no row knows; nothing that
    was sent is in the log, and no failure of the server's own."""
    before = _reset_peaks(running)
    with _another_client(running):
        yield
    assert get(running, "/healthz/live").status == 200
    for pid, peak in _peaks(running).items():
        # A child that was started meanwhile is held to what the largest one had.
        had = before.get(pid, max(before.values()))
        assert peak - had <= growth_bytes, f"{pid} grew by {(peak - had) / MIB:.1f} MiB"
    wait_until_rows_and_bytes_agree(running.data)
    assert_silent(running.log.read_text(errors="replace"))


def assert_silent(log: str) -> None:
    assert SENTINEL not in log
    assert "request_failed" not in log  # how a 5xx of the server's own making is logged
    assert "Traceback" not in log


@contextmanager
def _another_client(running: ServerProcess) -> Iterator[None]:
    """Somebody else's requests, one after another; each of them is answered with 200."""
    answered = threading.Event()
    over = threading.Event()
    found: list[BaseException | Reply] = []

    def ask() -> None:
        try:
            with closing(connected(running)) as sock:
                while not over.is_set():
                    sock.sendall(head("GET", "/v1/files?limit=1"))
                    reply = reply_of(sock)
                    if reply.status != 200:
                        found.append(reply)
                    answered.set()
                    over.wait(0.002)
        except BaseException as exc:  # noqa: BLE001  # raised below, in the test's own thread
            found.append(exc)
            answered.set()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert answered.wait(PATIENCE_S)
        yield
        answered.clear()
        assert answered.wait(PATIENCE_S), "another client waits for ever"
    finally:
        over.set()
        asking.join(PATIENCE_S)
    assert found == []


def processes_of(running: ServerProcess) -> list[int]:
    return [running.pid, *running.children()]


def _reset_peaks(running: ServerProcess) -> dict[int, int]:
    """Begin a new high-water mark for each process; its resident bytes now."""
    sizes = {}
    for pid in processes_of(running):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        sizes[pid] = _status_bytes(pid, "VmRSS")
    return sizes


def _peaks(running: ServerProcess) -> dict[int, int]:
    return {pid: _status_bytes(pid, "VmHWM") for pid in processes_of(running)}


def resident_bytes(pid: int) -> int:
    return _status_bytes(pid, "VmRSS")


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name} of {pid}")


# -- files and batches ---------------------------------------------------------------------------


def line(custom_id: str, body: bytes = b'{"model":"test-model"}') -> bytes:
    """A request line around the exact bytes of a body, without a line ending."""
    return b'{"custom_id":"%b","method":"POST","url":"/v1/completions","body":%b}' % (
        custom_id.encode(),
        body,
    )


def create(running: ServerProcess, file_id: str) -> dict[str, Any]:
    """Create a batch and wait for its end."""
    order = {
        "input_file_id": file_id,
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        "metadata": {"note": SENTINEL},
    }
    reply = post(running, "/v1/batches", json.dumps(order).encode())
    assert reply.status == 200, reply
    began = time.monotonic()
    while (batch := get(running, f"/v1/batches/{reply.json['id']}").json)["status"] not in (
        *("completed", "failed"),
    ):
        assert time.monotonic() < began + PATIENCE_S, batch
        pause(began)
    found: dict[str, Any] = batch
    return found


def problems(batch: Mapping[str, Any]) -> list[tuple[int | None, str, str | None]]:
    """The problems of a batch that failed: line, code and param of each."""
    assert batch["status"] == "failed", batch
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    return [(one["line"], one["code"], one["param"]) for one in batch["errors"]["data"]]

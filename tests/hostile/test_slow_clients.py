"""Clients that take their time: a thousand at once cost little, and nobody else waits for them.

How long each kind may take are settings (docs/reference/settings.md, Connections); here they are a
few seconds, so that the end of a patience can be waited for.
"""

from __future__ import annotations

import resource
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final, cast

import pytest

from batchline.api.http_protocol import MAX_PIPELINED
from tests.hostile.target import (
    MIB,
    PATIENCE_S,
    QUICK_SWEEPS,
    SENTINEL,
    assert_silent,
    connected,
    exchange,
    get,
    head,
    post,
    reply_of,
    resident_bytes,
    unharmed,
)
from tests.hostile.test_multipart import FORM, PURPOSE, WHOLE, file_part
from tests.support.server import ServerProcess, server

CLIENTS: Final = 1_000
TIMEOUT_S: Final = 1.0
THOUSAND_TIMEOUT_S: Final = 8.0  # they have to be there at once, on a busy machine too
READER_TIMEOUT_S: Final = 2.0
READER_BYTES_PER_S: Final = 2 * MIB
DRIP_S: Final = 0.3
OTHERS_S: Final = 0.05  # between two uploads of somebody who is not slow
CONNECTION_BYTES: Final = 640 * 1024  # of the server's memory, for the dearest: a stuck download
DOWNLOAD_BYTES: Final = 16 * MIB


@contextmanager
def patient_for(directory: Path, timeout_s: float) -> Iterator[ServerProcess]:
    connections = {f"{what}_timeout_s": timeout_s for what in ("head", "body", "send")}
    settings = {"connections": connections, "retention": QUICK_SWEEPS}
    with server(directory, "http://127.0.0.1:9", settings=settings) as one:
        yield one
        assert one.terminate() == 0
        assert_silent(one.log.read_text(errors="replace"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with patient_for(tmp_path_factory.mktemp("slow"), TIMEOUT_S) as one:
        yield one


@pytest.fixture
def many_files() -> Iterator[None]:
    """Descriptors for both ends' sake: each client is one here and one in the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CLIENTS + 500
    if hard != resource.RLIM_INFINITY and hard < wanted * 4 // 3:
        pytest.skip(f"{wanted * 4 // 3} open files are needed, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


WHOLE_LINE: Final = b'{"a":"%b"}\n' % (b"x" * 1_013)


def large_file(running: ServerProcess) -> str:
    """The path of a large file's content."""
    form = PURPOSE + file_part(b"large.jsonl", WHOLE_LINE * (DOWNLOAD_BYTES // len(WHOLE_LINE)))
    reply = post(running, "/v1/files", form + b"--b--\r\n", FORM)
    assert reply.status == 200
    return f"/v1/files/{reply.json['id']}/content"


class Drip(threading.Thread):
    """Sends a byte now and then on every socket that still takes one."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self._sockets = sockets
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(DRIP_S):
            for sock in self._sockets:
                with suppress(OSError):
                    sock.send(b"x")

    def end(self) -> None:
        self._over.set()
        self.join()


def until_closed(sockets: list[socket.socket]) -> list[bytes]:
    """What each socket still gave before the server closed it; a failure when it does not."""
    given = {sock: bytearray() for sock in sockets}
    with selectors.DefaultSelector() as waiting:
        for sock in sockets:
            waiting.register(sock, selectors.EVENT_READ)
        deadline = time.monotonic() + PATIENCE_S
        while waiting.get_map():
            assert time.monotonic() < deadline, f"{len(waiting.get_map())} are still open"
            for key, _ in waiting.select(0.1):
                sock = cast("socket.socket", key.fileobj)
                try:
                    data = sock.recv(65_536)
                except ConnectionError:
                    data = b""
                if data:
                    given[sock] += data
                else:
                    waiting.unregister(sock)
    return [bytes(given[sock]) for sock in sockets]


@pytest.mark.rule("H16")
def test_a_thousand_slow_clients_are_let_go_of_and_keep_nobody_waiting(
    tmp_path: Path, many_files: None
) -> None:
    heads, bodies, readers = CLIENTS * 4 // 10, CLIENTS * 3 // 10, CLIENTS * 3 // 10
    upload = head("POST", "/v1/files", {**FORM, "Content-Length": MIB}) + PURPOSE
    upload += file_part(b"in.jsonl")[:-2]
    with (
        patient_for(tmp_path, THOUSAND_TIMEOUT_S) as running,
        ExitStack() as open_now,
        unharmed(running, growth_bytes=CLIENTS * CONNECTION_BYTES),
    ):
        download = large_file(running)
        before = resident_bytes(running.pid)
        began = time.monotonic()
        sockets = [open_now.enter_context(closing(connected(running))) for _ in range(CLIENTS)]
        for sock in sockets[-readers:]:  # else the kernel holds gigabytes for them
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        for sock in sockets[:heads]:
            sock.sendall(head("GET", "/v1/files", {"X": SENTINEL})[:-2] + b"Y: ")
        for sock in sockets[heads : heads + bodies]:
            sock.sendall(upload)
        for sock in sockets[-readers:]:
            sock.sendall(head("GET", download))
        dripping = Drip(sockets[: heads + bodies])
        dripping.start()
        try:
            took_s: list[float] = []
            while not took_s or time.monotonic() - began < THOUSAND_TIMEOUT_S * 0.9:
                asked = time.monotonic()
                assert post(running, "/v1/files", WHOLE, FORM).status == 200
                took_s.append(time.monotonic() - asked)
                time.sleep(OTHERS_S)
            each = (resident_bytes(running.pid) - before) / CLIENTS
            answers = until_closed(sockets[: heads + bodies])
        finally:
            dripping.end()
        deadline = time.monotonic() + 2 * PATIENCE_S
        while running.log.read_text().count("answer_given_up") < readers:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cut = until_closed(sockets[-readers:])
    print(  # noqa: T201  # figures for whoever looks; pytest -s shows them
        f"{CLIENTS} slow clients: {each / 1024:.0f} KiB of the server's memory each; "
        f"{len(took_s)} uploads beside them took {statistics.median(took_s) * 1000:.0f} ms "
        f"(median), {max(took_s) * 1000:.0f} ms (worst)"
    )
    # Nobody waits until those are let go of; a machine that is busy may be late once.
    assert statistics.median(took_s) < THOUSAND_TIMEOUT_S
    for answer, what in [
        *((one, "head") for one in answers[:heads]),
        *((one, "body") for one in answers[heads:]),
    ]:
        status, _, rest = answer.partition(b"\r\n")
        assert status == b"HTTP/1.1 408 Request Timeout", answer
        assert f"The request's {what} came too slowly.".encode() in rest
        assert b'"type":"invalid_request_error"' in rest
    assert all(one.startswith(b"HTTP/1.1 200 OK") for one in cut)
    assert max(map(len, cut)) < DOWNLOAD_BYTES


@pytest.mark.rule("H16")
def test_a_connection_on_which_nothing_is_asked_is_closed_without_a_word(
    running: ServerProcess,
) -> None:
    with unharmed(running), closing(connected(running)) as sock, closing(connected(running)) as two:
        two.sendall(b"\r\n")
        assert until_closed([sock, two]) == [b"", b""]


@pytest.mark.rule("H16")
def test_what_was_answered_before_its_body_came_is_not_waited_for_longer(
    running: ServerProcess,
) -> None:
    with unharmed(running), closing(connected(running)) as sock:
        sock.sendall(head("GET", "/healthz/live", {"Content-Length": 10}))
        assert reply_of(sock).json == {"status": "alive"}
        sock.sendall(b"x")
        assert until_closed([sock]) == [b""]


@pytest.mark.rule("H16")
def test_a_slow_but_honest_upload_is_taken(running: ServerProcess) -> None:
    """Twice the least pace, over two stretches."""

    def slowly() -> Iterator[bytes]:
        content = b"".join(b'{"n":%d}\n' % number for number in range(200))
        body = PURPOSE + file_part(b"in.jsonl", content) + b"--b--\r\n"
        yield head("POST", "/v1/files", {**FORM, "Content-Length": len(body)})
        step = -(-len(body) // 22)
        for at in range(0, len(body), step):
            yield body[at : at + step]
            time.sleep(0.1)  # a slow client is the subject here

    with unharmed(running):
        began = time.monotonic()
        assert exchange(running, slowly()).status == 200
        assert time.monotonic() - began > 2 * TIMEOUT_S


@pytest.mark.rule("H16")
def test_a_reader_may_be_slow_as_long_as_it_reads(tmp_path: Path) -> None:
    """The kernel tells the server of room only when a good part of what it holds was read. So this
    one reads at a rate, however late a busy machine lets it: a short read now and then is too slow.
    """
    with patient_for(tmp_path, READER_TIMEOUT_S) as running:
        download = large_file(running)
        with unharmed(running), closing(connected(running)) as sock:
            sock.sendall(head("GET", download))
            began, received = time.monotonic(), 0
            while (took_s := time.monotonic() - began) < 2.5 * READER_TIMEOUT_S:
                while received < READER_BYTES_PER_S * took_s:
                    data = sock.recv(100_000)
                    assert data, f"cut off after {received} bytes"
                    received += len(data)
                time.sleep(0.05)
            while received < DOWNLOAD_BYTES - len(WHOLE_LINE):
                data = sock.recv(MIB)
                assert data, f"cut off after {received} bytes"
                received += len(data)


@pytest.mark.rule("H18")
def test_requests_sent_ahead_are_bounded(running: ServerProcess) -> None:
    one = b"GET /healthz/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with unharmed(running, growth_bytes=8 * MIB), closing(connected(running)) as sock:
        sock.sendall(one * 5_000)
        (answers,) = until_closed([sock])
    assert answers.count(b'{"status":"alive"}') == answers.count(b"HTTP/1.1 ") <= MAX_PIPELINED + 1


@pytest.mark.rule("H17")
def test_one_connection_too_many_is_told_so(tmp_path: Path) -> None:
    most = 16
    settings = {"connections": {"max_open": most}}
    with server(tmp_path, "http://127.0.0.1:9", settings=settings) as running, ExitStack() as held:
        running.client().models.list()
        for client in running._clients:
            client.close()

        def open_one() -> socket.socket:
            return held.enter_context(closing(connected(running)))

        kept = [open_one() for _ in range(most)]
        for sock in kept:  # each is known to be counted once it was answered
            sock.sendall(head("GET", "/healthz/live"))
            assert reply_of(sock).status == 200
        surplus = [open_one() for _ in range(3)]
        for sock in surplus:
            sock.sendall(head("GET", "/v1/files"))
            reply = reply_of(sock)
            assert (reply.status, reply.error["type"]) == (503, "server_error")
            assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")
        beyond = [open_one() for _ in range(2 * most)]
        assert until_closed(beyond) == [b""] * len(beyond)
        kept[0].sendall(head("GET", "/healthz/live"))
        assert reply_of(kept[0]).status == 200
        held.close()
        deadline = time.monotonic() + PATIENCE_S
        while (reply := get(running, "/healthz/live")).status == 503:
            assert time.monotonic() < deadline
        assert reply.status == 200
        assert_silent(running.log.read_text())

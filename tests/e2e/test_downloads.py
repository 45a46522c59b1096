"""Slow downloads of files that are deleted or expire meanwhile, from a real server."""

from __future__ import annotations

import http.client
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from tests.support.server import WAIT_S, ServerProcess, server
from tests.support.stored import wait_until_nothing_is_left, wait_until_rows_and_bytes_agree

# Far more than the sockets and the server hold between them.
CONTENT = b"".join(1_000 * (b"%07d\n" % number) for number in range(3_000))
TAKEN = 100_000
NOWHERE = "http://127.0.0.1:9"


def settings(**more: object) -> dict[str, object]:
    return {"retention": {"sweep_s": 0.05, **more}}


def uploaded(running: ServerProcess) -> str:
    return running.client().files.create(file=("a.txt", CONTENT), purpose="evals").id


@contextmanager
def begun(running: ServerProcess, file_id: str) -> Iterator[http.client.HTTPResponse]:
    """A download of which a little was read."""
    address = urlsplit(running.origin)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=WAIT_S)
    with closing(connection):
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        connection.request("GET", f"/v1/files/{file_id}/content")
        response = connection.getresponse()
        assert response.status == 200
        assert int(response.headers["content-length"]) == len(CONTENT)
        assert response.read(TAKEN) == CONTENT[:TAKEN]
        yield response


def until_swept(running: ServerProcess) -> None:
    """Wait for a whole sweep: a file that is deleted now goes with it."""
    before = running.blob_sizes()
    client = running.client()
    client.files.delete(client.files.create(file=("b", b"12345"), purpose="evals").id)
    running.wait_blobs(before)


def expire(running: ServerProcess, file_id: str) -> None:
    with closing(sqlite3.connect(running.data / "batchline.sqlite3", timeout=WAIT_S)) as database:
        past = int(time.time()) - 1
        database.execute("UPDATE file SET expires_at = ? WHERE id = ?", (past, file_id))
        database.commit()


@pytest.mark.rule("F24")
@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_a_slow_download_goes_on_to_its_end_when_its_file_goes(tmp_path: Path, how: str) -> None:
    with server(tmp_path, NOWHERE, settings=settings()) as running:
        client = running.client()
        file_id = uploaded(running)
        with begun(running, file_id) as response:
            if how == "deleted":
                assert client.files.delete(file_id).deleted
            else:
                expire(running, file_id)
            until_swept(running)
            assert running.blob_sizes() == [len(CONTENT)]
            for call in (client.files.content, client.files.retrieve, client.files.delete):
                with pytest.raises(openai.NotFoundError):
                    call(file_id)
            assert response.read() == CONTENT[TAKEN:]
        wait_until_nothing_is_left(running.data)


@pytest.mark.rule("F24")
def test_bytes_go_when_the_client_of_a_download_goes(tmp_path: Path) -> None:
    with server(tmp_path, NOWHERE, settings=settings()) as running:
        file_id = uploaded(running)
        with begun(running, file_id):
            running.client().files.delete(file_id)
            until_swept(running)
            assert running.blob_sizes() == [len(CONTENT)]
        wait_until_nothing_is_left(running.data)


@pytest.mark.rule("F24")
def test_a_reader_that_is_too_slow_does_not_hold_what_was_deleted_for_ever(tmp_path: Path) -> None:
    with server(tmp_path, NOWHERE, settings=settings(download_s=1)) as running:
        file_id, other = uploaded(running), uploaded(running)
        with begun(running, file_id) as response, begun(running, other) as goes_on:
            running.client().files.delete(file_id)
            running.wait_blobs([len(CONTENT)])  # those of the other file, which stays
            with pytest.raises(http.client.IncompleteRead):
                response.read()
            assert goes_on.read() == CONTENT[TAKEN:]
        assert "download_hold_ended" in running.tail()
        wait_until_rows_and_bytes_agree(running.data)


@pytest.mark.rule("F24")
def test_a_crash_leaves_nothing_held_by_a_download(tmp_path: Path) -> None:
    with server(tmp_path, NOWHERE, settings=settings()) as running:
        file_id = uploaded(running)
        with begun(running, file_id) as response:
            running.client().files.delete(file_id)
            until_swept(running)
            assert running.blob_sizes() == [len(CONTENT)]
            running.kill_all()
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()
        running.start()
        wait_until_nothing_is_left(running.data)

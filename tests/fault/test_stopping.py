"""Signals while everything is under way: a drain, a second signal, a death during the drain, a
terminal that is closed. What was committed stays, and the next start goes on."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import openai
import pytest

from tests.support.command import ended, started
from tests.support.inputs import line_id, make_lines
from tests.support.pauses import POLL_S, pause
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import WAIT_S, ServerProcess, conserved, server, submit, wait_for
from tests.support.stored import wait_until_rows_and_bytes_agree

LINES: Final = 120
ANSWERED: Final = 20  # of each batch, before everything is cut off
MAX_IN_FLIGHT: Final = 256
# What may be sent twice: what was in flight, and what was answered within one commit interval.
MOST_RESENT: Final = MAX_IN_FLIGHT + MAX_IN_FLIGHT * 4
UPLOAD: Final = make_lines(20_000)  # of an upload that is never finished
HELD: Final = Answer(hold=True)
# A process of its own session, whose terminal its standard input is.
ON_A_TERMINAL: Final = """
import os, sys
os.login_tty(0)
os.execv(sys.executable, [sys.executable, "-m", "batchline.cli.main", *sys.argv[1:]])
"""
PART: Final = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'


def second_signal(number: int) -> Callable[[ServerProcess], None]:
    def end(running: ServerProcess) -> None:
        os.kill(running.pid, signal.SIGTERM)
        wait_draining(running)
        began = time.monotonic()
        os.kill(running.pid, number)
        assert running.wait_ended() == 1
        assert time.monotonic() - began < 30.0  # and not the grace of a minute

    return end


def killed_in_the_drain(running: ServerProcess) -> None:
    os.kill(running.pid, signal.SIGTERM)
    wait_draining(running)
    running.kill_all()


def hung_up_twice(running: ServerProcess) -> None:
    """The grace is respected, however often a terminal hangs up; then everything is cut off."""
    for _ in range(2):
        os.kill(running.pid, signal.SIGHUP)
        wait_draining(running)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait_ended(0.5)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait_ended() == 1


def wait_draining(running: ServerProcess) -> None:
    deadline = time.monotonic() + WAIT_S
    while "server_draining" not in running.tail():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


@pytest.mark.parametrize(
    "end",
    [
        second_signal(signal.SIGTERM),
        second_signal(signal.SIGINT),
        killed_in_the_drain,
        hung_up_twice,
    ],
    ids=["SIGTERM again", "SIGINT after SIGTERM", "killed in the drain", "SIGHUP"],
)
async def test_an_end_while_everything_is_under_way_loses_nothing_committed(
    tmp_path: Path, end: Callable[[ServerProcess], None]
) -> None:
    """Requests, a cancel, a validation, an upload and a download are all cut off in the middle."""
    content_of_big = make_lines(320, padding=200_000)
    run, cancel, validate = (make_lines(LINES, start=n * LINES) for n in range(3))
    held = {line_id(n): (HELD,) for n in range(2 * LINES) if n % LINES >= ANSWERED}
    grace = {"grace_s": 60.0}
    async with backend_process(Script(by_id=held)) as backend:
        one = {"base_url": backend.base_url, "max_in_flight": MAX_IN_FLIGHT}
        settings = {
            "shutdown": grace,
            "cancel": grace,
            "backend": [one],
            "retention": {"sweep_s": 0.05},
        }
        with server(tmp_path, settings=settings) as running:
            client = running.client()
            big = client.files.create(file=("big", content_of_big), purpose="batch")
            batch, cancelled = submit(client, run), submit(client, cancel)
            await backend.wait_until(min_held=2 * (LINES - ANSWERED))
            counts = wait_counted(client, batch.id)
            cancelled = client.batches.cancel(cancelled.id)
            for child in set(running.children()) - set(running.workers()):
                os.kill(child, signal.SIGSTOP)
            validating = submit(client, validate)
            upload, download = _connection(running), _connection(running)
            _begin_upload(upload)
            download.request("GET", f"/v1/files/{big.id}/content")
            answer = download.getresponse()  # far more than the sockets in between take
            assert answer.status == 200
            assert answer.read(1000)
            assert client.batches.retrieve(validating.id).status == "validating"
            assert client.batches.retrieve(cancelled.id).status == "cancelling"

            end(running)
            upload.close()
            download.close()
            await backend.stop_holding()
            running.start()

            client = running.client()
            again = client.batches.retrieve(batch.id).request_counts
            assert again is not None
            assert again.completed >= counts
            log = None
            for of, content, status in (
                (batch, run, "completed"),
                (cancelled, cancel, "cancelled"),
                (validating, validate, "completed"),
            ):
                over = wait_for(client, of.id)
                assert over.status == status
                log = await backend.log()
                conserved(client, over, content, log)
            assert log is not None
            assert log.resent() <= MOST_RESENT
            with client.files.with_streaming_response.content(big.id) as whole:
                assert sum(map(len, whole.iter_bytes())) == len(content_of_big)
            wait_until_rows_and_bytes_agree(running.data)  # of the upload there is nothing


def wait_counted(client: openai.OpenAI, batch_id: str) -> int:
    """Until some lines are committed; how many."""
    began = time.monotonic()
    while not (counts := client.batches.retrieve(batch_id).request_counts) or not counts.completed:
        pause(began)
    return counts.completed


def _connection(running: ServerProcess) -> HTTPConnection:
    return HTTPConnection(urlsplit(running.origin).netloc, timeout=20)


def _begin_upload(connection: HTTPConnection) -> None:
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    connection.putheader("Content-Length", str(2 * len(UPLOAD)))
    connection.endheaders(
        PART + b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    )
    connection.send(UPLOAD)


async def test_a_closed_terminal_drains_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """Nothing can be written to it any more, and its SIGHUP goes to every process."""
    content = make_lines(LINES)
    async with backend_process(Script(answer=Answer(latency_s=0.05))) as backend:
        ours, theirs = pty.openpty()
        running = ServerProcess(tmp_path, [backend.base_url])
        words = ["serve", "--port", "0", "--data-dir", str(running.data)]
        process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, *words, "--upstream", backend.base_url],
            stdin=theirs,
        )
        os.close(theirs)
        try:
            client = openai.OpenAI(base_url=f"{_listening(ours)}/v1", api_key="none")
            with client:
                batch = submit(client, content)
                await backend.wait_for_arrivals(80)
            os.killpg(
                process.pid, signal.SIGHUP
            )  # the shell's, to all of the job; then the kernel's
            os.close(ours)
            process.wait(20)
        finally:
            process.kill()
            process.wait()
        assert running.children() == []
        with server(tmp_path, backend.base_url) as running:
            over = wait_for(running.client(), batch.id)
            summary = conserved(running.client(), over, content, await backend.log())
            assert summary.finished == LINES
            assert summary.resent == 0  # killed, it would be dozens


def _listening(terminal: int) -> str:
    """Read what the server says until it says where it listens and that it is ready."""
    said = ""
    deadline = time.monotonic() + 20
    while "server_started" not in said:
        assert time.monotonic() < deadline, said
        said += os.read(terminal, 4096).decode(errors="replace")
    found = re.search(r"http://127\.0\.0\.1:\d+(?=\s)(?!.*/v1)", said.partition("listening on ")[2])
    assert found is not None, said
    return found[0]


async def test_under_nohup_a_hang_up_is_ignored(tmp_path: Path) -> None:
    running = ServerProcess(tmp_path, ["http://127.0.0.1:9"], fork=False)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does: children inherit it
    try:
        running.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        os.kill(running.pid, signal.SIGHUP)
        assert running.readiness()["status"] == "ready"
        assert "server_draining" not in running.tail()
        assert running.terminate() == 0
    finally:
        running.close()


async def test_a_hung_up_run_is_cancelled_in_order(tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(make_lines(LINES))
    words = ["run", str(source), "--output", str(output), "--cancel-grace-s", "0"]
    async with backend_process(Script(answer=Answer(latency_s=0.1))) as backend:
        with started(*words, "--upstream", backend.base_url) as process:
            await backend.wait_for_arrivals(70)
            for _ in range(2):
                process.send_signal(signal.SIGHUP)
            assert await ended(process) == 130
    assert (
        output.read_bytes().count(b"\n") + (tmp_path / "out.errors.jsonl").read_bytes().count(b"\n")
        == LINES
    )

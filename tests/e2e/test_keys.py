"""Keys by the program's own commands, against real servers and without one."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import openai
import pytest

from batchline.api.admin import ListKeys, Refused
from batchline.cli import keys as command
from tests.support.server import ServerProcess, server

EVERYWHERE = "0.0.0.0"  # noqa: S104  # whether the server listens there is what is tested
NOWHERE = "http://127.0.0.1:1"


def listed(running: ServerProcess) -> list[dict[str, object]]:
    ran = running.command("keys", "list", "--json")
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.rule("K1")
@pytest.mark.rule("K4")
def test_a_key_made_while_the_server_runs_locks_it_and_a_revoked_one_ends_at_once(
    tmp_path: Path,
) -> None:
    with server(tmp_path, NOWHERE) as running:
        anybody = running.client()
        assert anybody.files.list().data == []
        alpha, beta = running.client(key=running.new_key("alpha")), running.new_key("beta")
        with pytest.raises(openai.AuthenticationError):
            anybody.files.list()
        assert alpha.files.list().data == []
        first, second = listed(running)
        assert (first["project"], second["project"]) == ("alpha", "beta")
        assert str(second["prefix"]) == beta[:14]
        ended = running.command("keys", "revoke", str(first["id"]))
        assert (ended.returncode, "is revoked since" in ended.stdout) == (0, True)
        with pytest.raises(openai.AuthenticationError):
            alpha.files.list()
        assert running.client(key=beta).files.list().data == []
        running.kill()
        running.start()
        with pytest.raises(openai.AuthenticationError):
            running.client(key="any").files.list()
        assert running.client(key=beta).files.list().data == []


def test_the_key_is_alone_on_standard_output_and_never_seen_again(tmp_path: Path) -> None:
    with server(tmp_path, NOWHERE, start=False) as idle:
        ran = idle.command("keys", "create", "--project", "alpha")
        (secret,) = ran.stdout.splitlines()
        assert secret.startswith("sk-bl-")
        assert secret[14:] not in ran.stderr
        (key,) = listed(idle)
        assert str(key["id"]) in ran.stderr
        table = idle.command("keys", "list").stdout
        assert secret[:14] in table
        assert secret[14:] not in table + json.dumps(key)


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path) -> None:
    with server(tmp_path, NOWHERE, start=False) as idle:
        for arguments in (["list"], ["revoke", "key_none"]):
            ran = idle.command("keys", *arguments)
            assert (ran.returncode, ran.stdout) == (2, "")
            assert "there is none" in ran.stderr
            assert not idle.data.exists()
        bad = idle.command("keys", "create", "--project", "no such name")
        assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (1, "", 1)
        unknown = idle.command("keys", "revoke", "key_none")
        assert (unknown.returncode, unknown.stdout, unknown.stderr.count("\n")) == (1, "", 1)


def test_a_directory_that_stays_locked_without_an_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_FREE_S", 0.1)
    held = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        answer = command._asked(ListKeys(), tmp_path)
    finally:
        os.close(held)
    assert isinstance(answer, Refused)
    assert "starting or stopping" in answer.message
    assert not (tmp_path / "batchline.sqlite3").exists()


@pytest.mark.rule("K5")
def test_another_address_needs_a_key_or_an_explicit_word(tmp_path: Path) -> None:
    with server(tmp_path, NOWHERE, options=["--host", EVERYWHERE], start=False) as running:
        running.start(wait=False)
        assert running.wait_ended() == 2
        said = [line for line in running.tail().splitlines() if line]
        assert len(said) == 1
        assert said[0].startswith("batchline: server.host: 0.0.0.0 would let others in")
        assert "batchline keys create" in said[0]
        secret = running.new_key("alpha")
        running.start()
        assert "every request needs one" in running.tail()
        with pytest.raises(openai.AuthenticationError):
            running.client().files.list()
        from_afar = running.client(key=secret).with_options(
            default_headers={"Host": "batch.example.com"}
        )
        assert from_afar.files.list().data == []


@pytest.mark.rule("K5")
def test_a_server_for_everybody_says_so(tmp_path: Path) -> None:
    options = ["--host", EVERYWHERE, "--insecure-no-auth"]
    with server(tmp_path, NOWHERE, options=options) as running:
        from_afar = running.client().with_options(default_headers={"Host": "batch.example.com"})
        assert from_afar.files.list().data == []
        assert "NONE, AND OTHERS CAN REACH IT" in running.tail()
        assert "server_open_to_everybody" in running.tail()
        running.new_key("alpha")
        with pytest.raises(openai.AuthenticationError):
            from_afar.files.list()

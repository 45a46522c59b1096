"""Keys from the keyboard: made, listed and revoked with and without a running server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.support.inputs import make_lines
from tests.support.scripted_backend import backend_process
from tests.support.server import ServerProcess, conserved, server, submit, wait_for

NOWHERE = "http://127.0.0.1:9"
KEY = re.compile(r"sk-bl-[0-9a-f]{64}")


@pytest.mark.rule("K4")
async def test_a_key_made_while_the_server_runs_locks_it_and_a_revoked_one_ends_at_once(
    tmp_path: Path,
) -> None:
    content = make_lines(20)
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            assert running.client().files.list().data == []
            made = running.command("keys", "create", "--project", "alpha")
            assert made.returncode == 0, made.stderr
            assert KEY.fullmatch(made.stdout.strip())  # alone on standard output
            key_id = made.stderr.split()[0]
            secret = made.stdout.strip()

            with pytest.raises(openai.AuthenticationError):
                running.client().files.list()
            client = running.client(key=secret)
            ended = wait_for(client, submit(client, content).id)
            assert conserved(client, ended, content).finished == 20

            listed = running.command("keys", "list", "--json").stdout
            assert secret not in listed
            (shown,) = map(json.loads, listed.splitlines())
            assert (shown["id"], shown["project"], shown["revoked_at"]) == (key_id, "alpha", None)
            assert running.command("keys", "revoke", key_id).returncode == 0
            with pytest.raises(openai.AuthenticationError):
                client.files.list()


async def test_keys_are_made_without_a_server_and_outlive_it(tmp_path: Path) -> None:
    with server(tmp_path, NOWHERE, start=False) as running:
        secret = running.new_key("alpha")
        running.start()
        with pytest.raises(openai.AuthenticationError):
            running.client().batches.list()
        assert running.client(key=secret).batches.list().data == []
        running.kill_all()
        running.start()
        assert running.client(key=secret).batches.list().data == []


async def test_wrong_names_and_ids_end_with_one_line(tmp_path: Path) -> None:
    with server(tmp_path, NOWHERE, start=False) as running:
        missing = running.command("keys", "list")
        assert (missing.returncode, missing.stdout) == (2, "")
        assert "there is none" in missing.stderr
        refused = running.command("keys", "create", "--project", "no spaces")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert len(refused.stderr.splitlines()) == 1
        unknown = running.command("keys", "revoke", "key_nobody")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "no key with that id" in unknown.stderr


@pytest.mark.rule("K5")
async def test_another_address_needs_a_key_or_an_explicit_word(tmp_path: Path) -> None:
    """Only the refusal is tried on a wide address: nothing may listen beyond loopback here."""
    with server(tmp_path, NOWHERE, start=False) as running:
        refused = _serve(running, "--host", "0.0.0.0")  # noqa: S104  # it is to be refused
        assert refused.returncode == 2
        assert "batchline keys create" in refused.stderr
        assert "--insecure-no-auth" in refused.stderr


def _serve(running: ServerProcess, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "batchline.cli.main", "serve", *options),
            *("--port", "0", "--data-dir", str(running.data), "--upstream", NOWHERE),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

"""`batchline audit` of what a real server made, of each way in which a batch ends."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support import damage
from tests.support.command import command
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import Answer, Script, backend_process
from tests.support.server import content_of, server, submit, wait_for

SETTINGS = {
    "cancel": {"grace_s": 0.0},
    "expire": {"grace_s": 0.0},
    "windows": ["24h", "2s"],
}
CONTENT = make_lines(400)


async def test_batches_of_every_end_are_sound_and_a_damaged_file_is_not(tmp_path: Path) -> None:
    failing = {line_id(number): (Answer(status=422),) for number in range(0, 400, 9)}
    held = {line_id(number): (Answer(hold=True),) for number in range(500, 600)}
    async with backend_process(Script(by_id={**failing, **held})) as backend:
        with server(tmp_path, backend.base_url, settings=SETTINGS) as running:
            client, env = running.client(), {"OPENAI_BASE_URL": f"{running.origin}/v1"}
            expiring = submit(client, make_lines(20, start=490), window="2s")
            cancelled = submit(client, make_lines(30, start=480))
            refused = submit(client, b'{"custom_id":"a"}\n')
            completed = submit(client, CONTENT)
            wait_for(client, completed.id, "completed")
            ran = await command("audit", cancelled.id, env=env)
            assert (ran.returncode, ran.stdout) == (1, "")
            assert "has not ended" in ran.stderr
            client.batches.cancel(cancelled.id)
            for batch, status in (
                (expiring, "expired"),
                (cancelled, "cancelled"),
                (refused, "failed"),
                (completed, "completed"),
            ):
                wait_for(client, batch.id, status)
                ran = await command("audit", batch.id, "--json", env=env)
                assert ran.returncode == 0, ran.stdout + ran.stderr
                report = json.loads(ran.stdout)
                assert (report["sound"], report["status"]) == (True, status)

            # The same, of files that are here.
            end = client.batches.retrieve(completed.id)
            paths = {name: tmp_path / f"{name}.jsonl" for name in ("input", "output", "errors")}
            paths["input"].write_bytes(CONTENT)
            paths["output"].write_bytes(content_of(client, end.output_file_id) or b"")
            paths["errors"].write_bytes(content_of(client, end.error_file_id) or b"")
            (tmp_path / "batch.json").write_text(end.to_json())
            files = [str(word) for pair in paths.items() for word in (f"--{pair[0]}", pair[1])]
            ran = await command("audit", *files, "--batch", tmp_path / "batch.json")
            assert ran.returncode == 0, ran.stdout + ran.stderr

            # An input that is gone from the server is taken from here.
            client.files.delete(end.input_file_id)
            ran = await command("audit", completed.id, env=env)
            assert (ran.returncode, "--input FILE" in ran.stderr) == (1, True)
            with_input = ["audit", completed.id, "--input", str(paths["input"])]
            assert (await command(*with_input, env=env)).returncode == 0

            # Nothing of a damaged range is sent, and its lines are named.
            one = next(one for one in damage.in_files(running.data) if line_id(1) in one.custom_ids)
            damage.flip_a_bit(one)
            ran = await command(*with_input, "--show", "1000", env=env)
            assert ran.returncode == 1
            assert "output: damaged: the server could give" in ran.stdout
            for custom_id in one.custom_ids:
                assert f"lost: '{custom_id}'" in ran.stdout
            assert running.readiness()["damaged"] >= 1


async def test_wrong_options_and_an_absent_server_have_their_exit_codes(tmp_path: Path) -> None:
    for words, said in (
        (["audit"], "name a batch"),
        (["audit", "batch_1", "--output", "x"], "without ID"),
        (["audit", "--input", str(tmp_path / "none")], "No such file"),
    ):
        ran = await command(*words)
        assert (ran.returncode, said in ran.stderr) == (2, True), ran.stderr
    ran = await command("audit", "batch_1", env={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    assert ran.returncode == 3

"""`batchline run`: as a person uses it, killed, interrupted, and started again."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import command, ended, started
from tests.support.inputs import line_id, make_lines
from tests.support.scripted_backend import Answer, BackendControl, Script, backend_process

LINES = 400
SLOW = Script(answer=Answer(latency_s=0.05))
MAX_IN_FLIGHT = 64
# What may be sent twice: what was in flight, and what was answered within one commit interval.
MOST_RESENT = MAX_IN_FLIGHT + MAX_IN_FLIGHT * 4


class Run:
    """The files of one run, and its command."""

    def __init__(self, folder: Path, backend: BackendControl, content: bytes) -> None:
        self.source = folder / "in.jsonl"
        self.output = folder / "out.jsonl"
        self.errors = folder / "out.errors.jsonl"
        self.private = folder / ".out.jsonl.batchline"
        self.source.write_bytes(content)
        self.words = [
            *("run", str(self.source), "--output", str(self.output)),
            *("--upstream", backend.base_url, "--cancel-grace-s", "0"),
        ]

    def done(self) -> list[dict[str, Any]]:
        return read(self.output)

    def failed(self) -> list[dict[str, Any]]:
        return read(self.errors) if self.errors.exists() else []

    def leftovers(self) -> list[str]:
        """What lies beside the input and the two files."""
        known = {self.source, self.output, self.errors}
        return [path.name for path in self.source.parent.iterdir() if path not in known]

    def assert_conserved(self, lines: int) -> None:
        """Every line once in one file, under an id of its own."""
        every = self.done() + self.failed()
        assert Counter(one["custom_id"] for one in every) == Counter(map(line_id, range(lines)))
        assert len({one["id"] for one in every}) == lines
        for one in self.done():
            assert f"[[id={one['custom_id']}]]" in json.dumps(one["response"]["body"])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_a_run_writes_every_result_and_leaves_nothing_else(tmp_path: Path) -> None:
    async with backend_process() as backend:
        run = Run(tmp_path, backend, make_lines(LINES, awkward=False, crlf=True, blank_every=7))
        ran = await command(*run.words)
        assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
        assert f"{LINES} of {LINES} lines succeeded" in ran.stderr
        run.assert_conserved(LINES)
        assert run.failed() == []
        assert not run.errors.exists()
        assert run.leftovers() == []


async def test_a_backend_that_does_not_list_its_models_is_not_waited_for(tmp_path: Path) -> None:
    script = Script(models_answer=Answer(status=404))
    async with backend_process(script) as backend:
        run = Run(tmp_path, backend, make_lines(20))
        ran = await command(*run.words)
        assert ran.returncode == 0, ran.stderr
        assert "waiting" not in ran.stderr
        run.assert_conserved(20)


async def test_a_bound_of_answers_does_not_bound_the_list_of_models(tmp_path: Path) -> None:
    async with backend_process(Script()) as backend:
        run = Run(tmp_path, backend, make_lines(3, model="no-such-model"))
        settings = tmp_path / "batchline.toml"
        settings.write_text(
            f'[[backend]]\nbase_url = "{backend.base_url}"\nmax_answer_bytes = 20\n'
        )
        ran = await command(*run.words[:4], "--config", settings)
        # With a list that could not be read, any model would be let through.
        assert ran.returncode == 2
        assert "model_not_found" in ran.stderr


async def test_limits_and_the_rule_of_one_model_do_not_hold_for_a_run(tmp_path: Path) -> None:
    script = Script(models=("one", "two"))
    async with backend_process(script) as backend:
        content = make_lines(30, model="one") + make_lines(30, model="two", start=30)
        run = Run(tmp_path, backend, content)
        limits = {"BATCHLINE_LIMITS_MAX_LINES": "10", "BATCHLINE_LIMITS_MAX_FILE_BYTES": "100"}
        ran = await command(*run.words, env=limits)
        assert ran.returncode == 0, ran.stderr
        run.assert_conserved(60)


async def test_failed_lines_go_to_the_error_file_and_into_the_exit_code(tmp_path: Path) -> None:
    async with backend_process() as backend:
        content = make_lines(40, markers=lambda n: "[[status=422]]" if n % 4 == 0 else "")
        run = Run(tmp_path, backend, content)
        errors = tmp_path / "elsewhere.jsonl"
        ran = await command(*run.words, "--errors", errors)
        assert ran.returncode == 1, ran.stderr
        run.errors = errors
        run.assert_conserved(40)
        assert len(run.failed()) == 10
        assert run.leftovers() == []


async def test_a_killed_run_goes_on_with_the_same_command_and_loses_nothing(
    tmp_path: Path,
) -> None:
    async with backend_process(SLOW) as backend:
        run = Run(tmp_path, backend, make_lines(LINES))
        with started(*run.words) as process:
            await backend.wait_for_arrivals(LINES // 2)
            process.send_signal(signal.SIGKILL)
            assert await ended(process) == -signal.SIGKILL
        assert not run.output.exists()
        ran = await command(*run.words)
        assert ran.returncode == 0, ran.stderr
        run.assert_conserved(LINES)
        assert len(run.done()) == LINES
        assert (await backend.log()).resent() <= MOST_RESENT
        assert run.leftovers() == []


@pytest.mark.parametrize(
    "probe",
    [
        "blob.renamed=kill",
        "batch.create.after=kill",
        "batch.start.after=kill",
        "finalize.after=kill",
        "run.output.written=kill",
        "run.written=kill",
        "run.removing=kill",
    ],
)
async def test_a_run_that_dies_at_a_step_goes_on_from_there(tmp_path: Path, probe: str) -> None:
    async with backend_process() as backend:
        run = Run(tmp_path, backend, make_lines(50))
        ran = await command(*run.words, env={"BATCHLINE_PROBES": probe})
        assert ran.returncode == -signal.SIGKILL
        ran = await command(*run.words)
        if probe == "run.removing=kill":
            # Everything was written: the same command must not pay for it again.
            assert ran.returncode == 2
            assert "exists already" in ran.stderr
        else:
            assert ran.returncode == 0, ran.stderr
        run.assert_conserved(50)
        assert (await backend.stats()).arrivals == 50


async def test_ctrl_c_keeps_what_is_done_and_the_same_command_runs_the_rest(
    tmp_path: Path,
) -> None:
    async with backend_process(SLOW) as backend:
        run = Run(tmp_path, backend, make_lines(LINES, blank_every=9))
        with started(*run.words) as process:
            await backend.wait_for_arrivals(LINES // 2)
            process.send_signal(signal.SIGINT)
            assert await ended(process) == 130
        partial = run.done()
        assert 0 < len(partial) < LINES
        run.assert_conserved(LINES)
        assert {one["error"]["code"] for one in run.failed()} == {"batch_cancelled"}
        assert run.private.is_dir()

        sent = (await backend.stats()).arrivals
        ran = await command(*run.words)
        assert ran.returncode == 0, ran.stderr
        run.assert_conserved(LINES)
        assert run.done()[: len(partial)] == partial
        assert (await backend.stats()).arrivals - sent == LINES - len(partial)
        assert not run.errors.exists()
        assert run.leftovers() == []


async def test_a_second_ctrl_c_ends_at_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    held = Script(answer=Answer(hold=True))
    async with backend_process(held) as backend:
        run = Run(tmp_path, backend, make_lines(20))
        words = [*run.words[:-2], "--cancel-grace-s", "60"]
        with started(*words) as process:
            await backend.wait_for_arrivals(20)
            process.send_signal(signal.SIGINT)
            # Held answers keep it in its grace; the second one does not wait for it.
            process.send_signal(signal.SIGTERM)
            assert await ended(process, timeout_s=5) == 130
        assert not run.output.exists()
        await backend.set_script(Script())
        ran = await command(*run.words)
        assert ran.returncode == 0, ran.stderr
        run.assert_conserved(20)


async def test_another_input_is_refused_until_the_run_is_begun_anew(tmp_path: Path) -> None:
    async with backend_process(SLOW) as backend:
        run = Run(tmp_path, backend, make_lines(LINES))
        with started(*run.words) as process:
            await backend.wait_for_arrivals(50)
            process.send_signal(signal.SIGINT)
            assert await ended(process) == 130
        partial = run.output.read_bytes()
        run.source.write_bytes(make_lines(30))
        ran = await command(*run.words)
        assert ran.returncode == 2
        assert "another input" in ran.stderr
        assert run.output.read_bytes() == partial
        ran = await command(*run.words, "--restart")
        assert ran.returncode == 0, ran.stderr
        run.assert_conserved(30)


async def test_results_that_are_there_are_not_run_again_by_mistake(tmp_path: Path) -> None:
    async with backend_process() as backend:
        run = Run(tmp_path, backend, make_lines(5))
        assert (await command(*run.words)).returncode == 0
        ran = await command(*run.words)
        assert ran.returncode == 2
        assert "--restart" in ran.stderr
        assert (await backend.stats()).arrivals == 5


async def test_two_runs_with_one_output_do_not_meet(tmp_path: Path) -> None:
    async with backend_process(Script(answer=Answer(hold=True))) as backend:
        run = Run(tmp_path, backend, make_lines(5))
        with started(*run.words) as process:
            await backend.wait_for_arrivals(5)
            ran = await command(*run.words)
            assert ran.returncode == 2
            assert "in use" in ran.stderr or "using it" in ran.stderr
            await backend.stop_holding()
            assert await ended(process) == 0
        run.assert_conserved(5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (make_lines(3) + b"{nonsense\n", "in.jsonl:4: invalid_json_line"),
        (b"nonsense\n" + make_lines(3), "in.jsonl:1: invalid_json_line"),
        (make_lines(2) + make_lines(1), "in.jsonl:3: duplicate_custom_id"),
        (b"", "in.jsonl: empty_file"),
        (make_lines(1, model="no-such"), "in.jsonl:1: model_not_found"),
    ],
)
async def test_a_bad_input_is_named_with_its_line_and_leaves_nothing(
    tmp_path: Path, content: bytes, said: str
) -> None:
    async with backend_process() as backend:
        run = Run(tmp_path, backend, content)
        ran = await command(*run.words)
        assert ran.returncode == 2
        assert said in ran.stderr
        assert run.leftovers() == []
        assert not run.output.exists()
        assert (await backend.stats()).arrivals == 0


async def test_a_run_without_an_input_or_a_place_for_its_output_is_refused(tmp_path: Path) -> None:
    nowhere = tmp_path / "no-such"
    ran = await command("run", nowhere, "--output", tmp_path / "o", "--upstream", "x:1")
    assert (ran.returncode, ran.stderr) == (2, f"batchline: {nowhere}: no such file\n")
    source = tmp_path / "in.jsonl"
    source.write_bytes(make_lines(1))
    ran = await command("run", source, "--output", nowhere / "o", "--upstream", "x:1")
    assert ran.returncode == 2
    assert "no such directory" in ran.stderr
    ran = await command("run", source, "--output", source, "--upstream", "x:1")
    assert ran.returncode == 2

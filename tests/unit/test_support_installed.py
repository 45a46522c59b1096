"""What a machine lacks is a visible skip there, and a failure in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.programs import Program
from tests.support.installed import lacking, require_modules


def test_what_is_missing_skips_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no compiler"):
        lacking("no compiler")
    with pytest.raises(pytest.skip.Exception, match="not installed: no_such_module"):
        require_modules("os", "no_such_module")


def test_what_is_missing_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no compiler; CI must have it"):
        lacking("no compiler")


@pytest.mark.parametrize("ci", [False, True])
async def test_a_program_without_its_language_is_not_passed_over(
    ci: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ci:
        monkeypatch.setenv("CI", "true")
    else:
        monkeypatch.delenv("CI", raising=False)
    program = Program(name="cobol", command=("no-such-language", "job.cob"))
    with pytest.raises(pytest.fail.Exception if ci else pytest.skip.Exception, match="cobol needs"):
        await program.run(tmp_path, "http://127.0.0.1:1/v1")

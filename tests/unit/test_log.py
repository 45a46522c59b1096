"""Lines of the log, and what is not imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest

from batchline import telemetry


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_is_an_object_of_json_with_its_instant(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.trouble("backend_gated", backend="a\nb", tries=2, took_s=None)
    line = capsys.readouterr().err
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    said = json.loads(line)
    instant = datetime.fromisoformat(said.pop("timestamp"))
    assert abs(datetime.now(UTC) - instant) < timedelta(minutes=1)
    assert said == {
        "backend": "a\nb",
        "tries": 2,
        "took_s": None,
        "event": "backend_gated",
        "level": "warning",
    }


@pytest.mark.parametrize(("level", "said"), [("info", 2), ("warning", 1), ("error", 0)])
def test_what_is_below_the_level_is_not_said(
    level: str, said: int, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry.configure_logging(level=level)
    telemetry.event("server_started")
    telemetry.trouble("backend_gated")
    assert len(capsys.readouterr().err.splitlines()) == said


def test_a_person_at_a_terminal_reads_words(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    telemetry.trouble("backend_gated", backend="a")
    assert "backend_gated" in terminal.getvalue()
    assert "{" not in terminal.getvalue()


@pytest.mark.parametrize("module", ["batchline.cli.worker_child", "batchline.cli.serve"])
def test_what_few_processes_need_is_not_imported_with_the_others(module: str) -> None:
    """Each is 40 to 100 ms of every start, and of a worker's loop if it came in mid-flight."""
    late = ("aiohttp", "structlog", "rich.traceback", "psycopg", "sqlalchemy.dialects.postgresql")
    code = f"import sys, {module}; from batchline import telemetry; telemetry.trouble('x_failed');"
    code += f"print([name for name in {late} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
    assert "x_failed" in ran.stderr

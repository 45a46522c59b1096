"""The OpenAPI document against a running server: schemathesis asks, and believes nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.openapi import Documented
from tests.support.scripted_backend import backend_process
from tests.support.server import server

PHASES = ("coverage", "fuzzing", "stateful")
# It does not find the way to a 200 of these; the tests of tests/contract/api do, and hold every
# answer to the document as well.
OUT_OF_REACH = {
    "POST /v1/uploads/{upload_id}/complete",
    "POST /v1/batches/{batch_id}/cancel",
    "GET /v1/batches/{batch_id}/receipt",
}
CONFIG = Path(__file__).with_name("openapi.toml")


@pytest.mark.long  # tests/contract/api holds every answer of its own to the document
@pytest.mark.rule("X7")
async def test_no_answer_is_outside_of_the_document(tmp_path: Path) -> None:
    """Valid and invalid requests to every operation, and chains of them along the links.

    No 5xx, no status, header, type or body that is not documented, and nothing invalid is taken.
    The cases are the same in every run.
    """
    async with backend_process() as backend:
        with server(tmp_path, backend.base_url) as running:
            report = tmp_path / "report.json"
            said = await schemathesis(running.origin, report, cwd=tmp_path)
            assert running.is_running
    found = json.loads(report.read_text())
    asked = operations() - {"GET /openapi.json"}  # that is where it has them from
    assert found["complete"]
    assert found["operations"]["tested"] == found["operations"]["total"] == len(asked), said
    assert [found["phases"][one]["status"] for one in PHASES] == ["success"] * len(PHASES), said
    assert found["test_cases"]["generated"] >= 20 * len(asked), said
    assert found["test_cases"]["without_checks"] == 0, said
    assert sorted(asked - accepted(found) - OUT_OF_REACH) == []


async def schemathesis(origin: str, report: Path, *, cwd: Path) -> str:
    """What it says of the server, which has no failure in it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "--no-color"),
        *("run", f"{origin}/openapi.json", "--warnings", "off"),
        *("--generation-deterministic", "--max-examples", "10", "--continue-on-failure"),
        *("--report", "json", "--report-json-path", str(report)),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    said = output.decode()
    assert process.returncode == 0, said
    return said


def operations() -> set[str]:
    return {
        f"{method.upper()} {path}"
        for path, methods in Documented().document["paths"].items()
        for method in methods
    }


def accepted(found: dict[str, Any]) -> set[str]:
    """The operations that said 200 to something."""
    return {
        name
        for name, phases in found["valid_rates"].items()
        if any(one["accepted"] for one in phases.values())
    }

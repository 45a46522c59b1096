"""The page of the OpenAPI document in a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.server import server

FLAGS = [
    "--headless",
    "--no-sandbox",  # the tests may run as root; the page is our own
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
]


@pytest.mark.rule("X7")
def test_the_page_shows_every_route_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """The log of the browser names whatever the page's policy refused."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    with server(tmp_path, "http://127.0.0.1:9") as running:
        ran = subprocess.run(
            [
                *(browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"),
                *("--dump-dom", f"{running.origin}/docs"),
            ],
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        )
    assert 'data-path="/v1/batches/{batch_id}/cancel"' in ran.stdout
    assert ran.stdout.count('class="opblock-summary-path"') >= 24
    said = [line for line in ran.stderr.splitlines() if ":CONSOLE" in line]
    assert said == []

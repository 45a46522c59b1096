"""Random histories of batches on the real service layer and a real store, against a model of them.

`make model N=2000` takes more histories than `make test` does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import BatchMachine
from tests.model.world import Template

EXAMPLES: Final = int(os.environ.get("BATCHLINE_MODEL") or 40)
STEPS: Final = 40


def test_batches_do_what_the_reference_says(tmp_path: Path) -> None:
    BatchMachine.template = Template(tmp_path)
    run_state_machine_as_test(
        BatchMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

"""Random histories of batches on the real service layer and a real store, against the reference.

`make model N=2000` takes more of them than `make test`, others each time; `SEED` repeats a run.
A history is deterministic: the steps that are printed for one that fails are all there is to it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import BatchMachine
from tests.model.world import Template

HISTORIES: Final = int(os.environ.get("BATCHLINE_MODEL") or 5)
SEED: Final = int(os.environ.get("BATCHLINE_SEED") or 1)
STEPS: Final = 50  # at most, of one history


@pytest.mark.timeout(60 + 10 * HISTORIES)
def test_batches_do_what_the_reference_says(tmp_path: Path) -> None:
    BatchMachine.template = Template(tmp_path)
    run_state_machine_as_test(
        seed(SEED)(BatchMachine),
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
    done = BatchMachine.steps
    print(f"\nseed {SEED}: {HISTORIES} histories, {done} steps")  # noqa: T201  # the record of a run

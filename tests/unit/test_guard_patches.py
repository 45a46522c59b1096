"""The patches of `make guards` fit the code of today; whether tests notice them is their run's."""

from __future__ import annotations

import re

import pytest

from tests.guards.run import HERE, ROOT, Guard, apply, guards


@pytest.mark.parametrize("guard", guards(), ids=lambda guard: guard.name)
def test_a_guards_patch_applies_and_names_tests_that_exist(guard: Guard) -> None:
    """If this fails, make the patch anew as tests/guards/README.md says; do not drop the guard."""
    assert apply(guard, ROOT, check=True) == ""
    for test in guard.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), test


def test_a_patch_touches_the_product_and_nothing_else() -> None:
    for patch in HERE.glob("*.patch"):
        touched = re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.MULTILINE)
        assert touched, patch.name
        assert all(path.startswith("src/batchline/") for path in touched), patch.name

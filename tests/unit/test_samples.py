"""How many samples are enough: they say so themselves."""

from __future__ import annotations

import math

import pytest

from batchline.executor.samples import Samples


def test_the_mean_goes_by_weight_and_one_sample_says_nothing_of_its_error() -> None:
    samples = Samples()
    samples.add(10.0, 1.0)
    assert samples.error == math.inf
    samples.add(20.0, 3.0)
    assert samples.mean == pytest.approx(17.5)


def test_the_error_falls_with_the_number_and_is_none_where_all_agree() -> None:
    few, many, same = Samples(), Samples(), Samples()
    for number in range(40):
        value = 9.0 + 2.0 * (number % 2)
        many.add(value)
        same.add(10.0)
        if number < 4:
            few.add(value)
    assert same.error == pytest.approx(0.0, abs=1e-6)
    assert few.error == pytest.approx(0.1 / math.sqrt(3))
    assert many.error == pytest.approx(0.1 / math.sqrt(39))


def test_cleared_it_begins_anew() -> None:
    samples = Samples()
    samples.add(5.0)
    samples.clear()
    samples.add(7.0)
    assert (samples.count, samples.mean) == (1, 7.0)


def test_of_nothing_but_zeros_the_error_is_unknown() -> None:
    """An engine that says that nothing runs while requests are with it."""
    samples = Samples()
    samples.add(0.0)
    samples.add(0.0)
    assert samples.error == math.inf

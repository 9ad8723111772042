"""Thousands of calls in one process leave the memory as it was."""

import numpy as np
import pytest

from benchmarks.memory import NAMES, growth, moving
from lkm_calc import LKMCalculator

from .support import small_model

CALLS = 1000
ALLOWED = 2.0
"""MB that they may add: 2 kB a call, less than the edges alone of one structure."""


def added(calculate, names):
    """Return the MB that calls add after the first fifth as many, in which allocators settle."""
    (_, before), *_, (_, after) = growth(calculate, moving(names), CALLS * 6 // 5, 6)
    return after - before


@pytest.mark.parametrize("names", [("CH4",), NAMES], ids=["one molecule", "molecules by turns"])
def test_calls_keep_nothing(names):
    calculator = LKMCalculator(small_model(num_blocks=1))
    assert added(calculator.calculate, names) < ALLOWED


def test_control_what_is_kept_is_seen():
    kept = []
    # 40 MB, more than is free from the tests before.
    assert added(lambda atoms: kept.append(np.ones(5000)), NAMES) > 10 * ALLOWED

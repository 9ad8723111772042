"""Thousands of calls in one process leave the memory as it was."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from benchmarks.memory import NAMES, growth, moving
from lkm_calc import LKMCalculator

from ..support import small_model

CALLS = 1000
ALLOWED = 2.0
"""MB that they may add: 2 kB a call, less than the edges alone of one structure."""


def added(names, leak=0):
    """Return the MB that calls add after the first fifth as many, in which allocators settle.

    Args:
        names: Molecules that are computed by turns.
        leak: Bytes that each call keeps, to see that they are seen.
    """
    calculator, kept = LKMCalculator(small_model(num_blocks=1)), []

    def calculate(atoms):
        calculator.calculate(atoms)
        kept.append(np.ones(leak, dtype=np.int8))

    (_, before), *_, (_, after) = growth(calculate, moving(names), CALLS * 6 // 5, 6)
    return after - before


@pytest.mark.parametrize(
    ("names", "leak"),
    [(("CH4",), 0), (NAMES, 0), (NAMES, 10_000)],
    ids=["one molecule", "molecules by turns", "control"],
)
def test_calls_keep_nothing(names, leak):
    # In a process of its own: this one has memory to spare from the tests before.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        grown = pool.submit(added, names, leak).result()
    assert grown < ALLOWED if leak == 0 else grown > 2 * ALLOWED

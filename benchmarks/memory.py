"""Resident memory of one process over many calls, which must not grow.

Atoms move by about 0.01 Å per call, so that the neighbour list is reused in some calls and rebuilt
in others. In the second run the number of atoms changes at every call.

    python -m benchmarks.memory --calls 100000
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from itertools import count

import ase
import numpy as np
import psutil
import torch
from ase.build import molecule

from lkm_calc import LKMCalculator, build_model

NAMES = ("H2O", "CH3CH2OH", "C6H6", "NH3", "CH4")
"""Molecules of 3 to 12 atoms, by turns."""


def resident() -> float:
    """Return the resident memory of this process in MB."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


def moving(names: tuple[str, ...], seed: int = 0) -> Iterator[ase.Atoms]:
    """Yield molecules by turns for ever, each time a little farther from where they were."""
    rng = np.random.default_rng(seed)
    rest = [molecule(name) for name in names]
    walking = [atoms.copy() for atoms in rest]
    for k in count():
        atoms, start = walking[k % len(names)], rest[k % len(names)]
        atoms.positions += rng.normal(0, 0.01, atoms.positions.shape)
        atoms.positions -= 0.01 * (atoms.positions - start.positions)  # held near its rest
        yield atoms


def growth(
    calculate: Callable[[ase.Atoms], object],
    structures: Iterator[ase.Atoms],
    calls: int,
    points: int,
) -> Iterator[tuple[int, float]]:
    """Yield pairs (calls, resident memory in MB), at ``points`` equal intervals."""
    for k in range(1, calls + 1):
        calculate(next(structures))
        if k % (calls // points) == 0:
            yield k, resident()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--calls", type=int, default=100_000, help="of each of the two runs")
    parser.add_argument("--points", type=int, default=10, help="at which memory is told")
    parser.add_argument("--skin", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model("dimenet++", hidden=16, num_blocks=1, triplet_dim=8, basis_dim=4)
    calculator = LKMCalculator(model, "cpu", skin=options.skin)
    runs = {"9 atoms": ("CH3CH2OH",), "3 to 12 atoms by turns": NAMES}
    for label, names in runs.items():
        structures = moving(names)
        ((_, before),) = growth(calculator.calculate, structures, 500, 1)
        print(f"{label}: {before:.1f} MB resident after 500 calls")
        told = growth(calculator.calculate, structures, options.calls, options.points)
        for calls, memory in told:
            print(f"{calls:9d} calls {memory - before:+7.2f} MB", flush=True)


if __name__ == "__main__":
    main()

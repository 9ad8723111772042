"""lkm-calc compile."""

import argparse
import logging
import statistics
import time
from collections.abc import Callable

import ase

from ..calculator import LKMCalculator
from ..files import cache_folder
from .common import (
    Subcommands,
    add_command,
    add_dtype_option,
    add_model,
    add_structure,
    read_structure,
)

logger = logging.getLogger("lkm_calc")

MANUAL = """\
Build the compiled kernel of a model's architecture for this processor in advance, so that
LKMCalculator(MODEL, "cpu", compile=True) starts at once, and print the speed-up for a structure.
Takes ten seconds and needs a C++ compiler (pip install "lkm-calc[compiler]" provides one).

  lkm-calc compile rmd17-aspirin aspirin.xyz
"""

TIMED = 20
"""Number of timed calls, with and without the kernel."""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "compile", "build the compiled kernel in advance", MANUAL, run)
    add_model(parser)
    add_structure(parser)
    add_dtype_option(parser)


def run(options: argparse.Namespace) -> int:
    """Build the kernel and report the speed-up for a structure."""
    atoms = read_structure(options.structure)
    plain = LKMCalculator(options.model, "cpu", options.dtype)
    quick = LKMCalculator(options.model, "cpu", options.dtype, compile=True)
    quick.calculate(atoms)
    if quick.ordinary:
        return 1  # a warning has said why
    seconds: dict[Callable[[ase.Atoms], None], list[float]] = {
        plain.calculate: [],
        quick.calculate: [],
    }
    for _ in range(TIMED):
        for calculate, taken in seconds.items():
            began = time.perf_counter()
            calculate(atoms)
            taken.append(time.perf_counter() - began)
    before, after = (1e3 * statistics.median(taken) for taken in seconds.values())
    logger.info(
        "%d atoms: %.1f ms per call instead of %.1f ms, %.1f times as fast. Cached in %s.",
        len(atoms),
        after,
        before,
        before / after,
        cache_folder(),
    )
    return 0

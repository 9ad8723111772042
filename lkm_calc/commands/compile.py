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
Build the kernel of a model's architecture for this processor, so that
LKMCalculator(MODEL, "cpu", compile=True) starts at once, and print what it brings for a structure.
Needs ten seconds and a C++ compiler (pip install "lkm-calc[compiler]" if there is none).

  lkm-calc compile rmd17-aspirin aspirin.xyz
"""

TIMED = 20
"""Calls of each kind that are timed."""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "compile", "make MD start at once", MANUAL, run)
    add_model(parser)
    add_structure(parser)
    add_dtype_option(parser)


def run(options: argparse.Namespace) -> int:
    """Make the program of a structure, and tell what it is worth."""
    atoms = read_structure(options.structure)
    plain = LKMCalculator(options.model, "cpu", options.dtype)
    quick = LKMCalculator(options.model, "cpu", options.dtype, compile=True)
    quick.calculate(atoms)
    if quick.ordinary:
        return 1  # it has been told why
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
        "%d atoms: %.1f ms a call instead of %.1f, %.1f times faster. Kept in %s.",
        len(atoms),
        after,
        before,
        before / after,
        cache_folder(),
    )
    return 0

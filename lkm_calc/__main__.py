"""The command lkm-calc."""

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import ase.io

from .calculator import LKMCalculator
from .checkpoint import ModelFileError
from .compiled import cache_folder

logger = logging.getLogger("lkm_calc")

COMPILE = """\
Compile a model for a structure on the CPU, so that LKMCalculator(MODEL, "cpu", compile=True) starts
at once for it and for others of as many atoms and hardly more neighbours. Needs a C++ compiler and
about a minute.
"""

TIMED = 20
"""Calls of each kind that are timed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 refused."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (ModelFileError, OSError, ValueError) as error:
        logger.error("%s", error)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lkm-calc", description="Use force fields of lkm-calc.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("compile", help="make MD start at once", description=COMPILE)
    command.set_defaults(command=_compile)
    command.add_argument("model", help="bundled model, or path of a model file")
    command.add_argument("structure", help="file that ASE reads, of which the first one counts")
    command.add_argument("--dtype", choices=("float32", "float64"), help="that of the weights")
    return parser


def _compile(options: argparse.Namespace) -> int:
    """Make the program of a structure, and tell what it is worth."""
    atoms = ase.io.read(options.structure, index=0)
    if not isinstance(atoms, ase.Atoms):
        raise ValueError(f"{options.structure} holds no structure. Give a file that does.")
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


if __name__ == "__main__":
    sys.exit(main())

"""The command lkm-calc."""

import argparse
import logging
import sys
from collections.abc import Sequence

from .commands import compile as compile_
from .commands import evaluate, info, md, models, relax, vib
from .md import MDError
from .models import import_architectures
from .page import PageError
from .runtime import add_version, on_any_terminal
from .uncertainty import ExtrapolationError

logger = logging.getLogger("lkm_calc")

MANUAL = """\
Run MD, relaxations and other calculations with lkm-calc force fields. MODEL is the name of a
bundled model or the path of a model file.

  lkm-calc models                              list the bundled models and their errors
  lkm-calc models --page models.html --open    show them with their molecules in a browser
  lkm-calc info MODEL                          describe a model file
  lkm-calc md MODEL STRUCTURE --ps 20          run or resume molecular dynamics
  lkm-calc relax MODEL STRUCTURE               relax a structure
  lkm-calc evaluate MODEL STRUCTURES -o FILE   energies, forces and stress of many structures
  lkm-calc vib MODEL STRUCTURE                 harmonic vibrations
  lkm-calc compile MODEL STRUCTURE             build the compiled kernel in advance

Run lkm-calc COMMAND --help for the options of a command.
"""


@on_any_terminal
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 success, 1 error, 3 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        import_architectures(options.imports)
        return int(options.command(options))
    except BrokenPipeError:
        raise
    except (ExtrapolationError, MDError, MemoryError, OSError, PageError, ValueError) as error:
        logger.error("lkm-calc: %s", error)
        return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lkm-calc", description=MANUAL, formatter_class=raw)
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (md, relax, evaluate, vib, info, models, compile_):
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The command lkm-train."""

import argparse
import logging
import sys
from collections.abc import Sequence

from lkm_calc.models import ArchitectureError, import_architectures
from lkm_calc.page import PageError
from lkm_calc.potential import ModelFileError
from lkm_calc.runtime import add_version, on_any_terminal

from .commands import calibrate, check_data, compare, download, evaluate, fit, learn, report
from .config import ConfigError
from .data import DataError
from .fit import TrainingDivergedError, first_process
from .state import StateError

logger = logging.getLogger("lkm_train")

MANUAL = """\
Train force fields with Layer-to-Layer Knowledge Mixing, and evaluate them.

  lkm-train fit CONFIG.toml                        train, or continue a run that was stopped
  lkm-train fit CONFIG.toml --optimiser.epochs 10  override a value of the configuration
  lkm-train fit rmd17 --molecule ethanol --data FILE   use a bundled configuration
  lkm-train fit CONFIG.toml --time 2h              train for about two hours
  lkm-train fit CONFIG.toml --prolong 300          continue a finished run to 300 epochs in total
  lkm-train fit CONFIG.toml --members 4            train a committee
  lkm-train fit CONFIG.toml --finetune MODEL       start from a trained model
  lkm-train fit CONFIG.toml --pretrain gfn2-xtb    pretrain on dynamics with a cheap method
  lkm-train fit CONFIG.toml --import my_model.py   train a custom architecture
  torchrun --nproc-per-node 4 -m lkm_train fit CONFIG.toml   train on several GPUs
  lkm-train learn MOLECULE.xyz --labels gfn2-xtb   active learning from a structure
  lkm-train report RUN --open                      write an interactive page about a run
  lkm-train compare RUN RUN --open                 compare learning curves, errors and options
  lkm-train evaluate MODEL DATA                    compute errors on labelled frames
  lkm-train calibrate MODEL DATA                   calibrate the extrapolation guards of a model
  lkm-train check-data DATA                        check labelled frames for errors
  lkm-train download md17-aspirin FOLDER           download a public data set
"""


@on_any_terminal
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 success, 1 error, 3 stopped before the end."""
    # With several processes, only the first one logs progress.
    level = logging.INFO if first_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (fit.run, learn.run):
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    options.overrides = rest
    try:
        import_architectures(options.imports)
        return int(options.command(options))
    except BrokenPipeError:
        raise
    except (
        ArchitectureError,
        ConfigError,
        DataError,
        ModelFileError,
        OSError,
        PageError,
        StateError,
        TrainingDivergedError,
    ) as error:
        logger.error("lkm-train: %s", error)
        return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lkm-train", description=MANUAL, formatter_class=raw)
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (fit, learn, evaluate, report, compare, calibrate, check_data, download):
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The command lkm-train."""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence

from lkm_calc import load_model
from lkm_calc.checkpoint import ModelFileError
from lkm_calc.precision import fast_matmul

from .config import Config, ConfigError, read_config
from .evaluate import errors_of, predict
from .frames import DataError
from .loader import GraphFrames
from .loop import TrainingDivergedError, check_elements, device_of, fit
from .md17 import read_md17
from .state import StateError

logger = logging.getLogger("lkm_train")

DESCRIPTION = """\
Train force fields with Layer-to-Layer Knowledge Mixing, and measure them.

  lkm-train fit CONFIG.toml                        train, or go on with a run that was stopped
  lkm-train fit CONFIG.toml --optimiser.epochs 10  change a value of the configuration
  lkm-train evaluate MODEL DATA.npz                errors on labelled frames
"""

FIT = """\
Train a model from a TOML configuration, which lists only what differs from the defaults below.
Ctrl-C finishes the step and saves; the same command then goes on from there.

The run's folder receives config.json, split.npz, metrics.jsonl, state.pt (to go on from),
model.safetensors (best on the validation frames, for LKMCalculator), last.safetensors,
result.json, card.md, learning_curves.png and parity.png.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 refused, 3 stopped before the end."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not _fit:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    try:
        return int(options.command(options, rest))
    except (
        ConfigError,
        DataError,
        ModelFileError,
        OSError,
        StateError,
        TrainingDivergedError,
    ) as error:
        logger.error("lkm-train: %s", error)
        return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lkm-train", description=DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit_parser = commands.add_parser(
        "fit", help="train a model", description=FIT, epilog=_defaults(), formatter_class=raw
    )
    fit_parser.add_argument("config", metavar="CONFIG.toml")
    fit_parser.add_argument(
        "--stop-after", type=int, metavar="N", help="stop, resumably, after N steps in all"
    )
    fit_parser.set_defaults(command=_fit)
    evaluate = commands.add_parser(
        "evaluate",
        help="errors of a model on labelled frames",
        description="Print the errors of a model on the frames of an MD17 or rMD17 file, as JSON.",
    )
    evaluate.add_argument("model", metavar="MODEL", help="bundled name or model file")
    evaluate.add_argument("data", metavar="DATA", help="npz file")
    evaluate.add_argument("--labels", choices=("revised", "original"), default="revised")
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--batch-size", type=int, default=16)
    evaluate.add_argument(
        "--no-check-units",
        dest="check_units",
        action="store_false",
        help="accept labels that are not credible in kcal/mol and kcal/mol/Å",
    )
    evaluate.set_defaults(command=_evaluate)
    return parser


def _defaults() -> str:
    """Return the configuration's sections, keys and defaults."""
    lines = ["Configuration keys and their defaults:", ""]
    for section in dataclasses.fields(Config):
        values = getattr(Config(), section.name)
        lines.append(f"[{section.name}]")
        lines += [f"{f.name} = {getattr(values, f.name)!r}" for f in dataclasses.fields(values)]
        lines.append("")
    return "\n".join(lines)


def _fit(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    config = read_config(options.config, overrides)
    model = fit(config, options.stop_after)
    if model is None:
        logger.info("Stopped; the same command goes on from here.")
        return 3
    result = json.loads((model.parent / "result.json").read_text(encoding="utf-8"))
    for name in ("validation_errors", "test_errors"):
        if name in result:
            logger.info("%s: %s", name.replace("_", " "), json.dumps(result[name]))
    logger.info("The model is %s; its plots are beside it.", model)
    return 0


def _evaluate(options: argparse.Namespace, _rest: Sequence[str]) -> int:
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size is {options.batch_size}; it must be at least 1.")
    device = device_of(options.device, "--device")
    model = load_model(options.model, device=device)
    frames = read_md17(options.data, options.labels, options.check_units)
    check_elements(model, frames, options.data)
    data = GraphFrames(frames, model.cutoff, device)
    with fast_matmul():
        errors = errors_of(predict(model, data, options.batch_size))
    sys.stdout.write(json.dumps(errors._asdict(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

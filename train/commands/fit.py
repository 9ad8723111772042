"""lkm-train fit."""

import argparse
import dataclasses
import json
import logging

from lkm_calc.commands import Subcommands, add_command, add_import_option

from ..config import Config, ConfigError, read_config
from ..fit import fit, fit_members, parse_time, prolonged
from .common import bundled_configs, find_config

logger = logging.getLogger("lkm_train")

MANUAL = """\
Train a model from a TOML configuration, which only contains values that differ from the defaults
below. Ctrl-C finishes the current step and saves the state; the same command then continues.

Files in the run directory: config.json, split.npz, metrics.jsonl, state.pt (training state),
model.safetensors (lowest validation error, for LKMCalculator), last.safetensors, result.json,
card.md, learning_curves.png, parity.png and report.html.
"""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "fit", "train a model", MANUAL, run)
    parser.epilog = _defaults()
    parser.add_argument(
        "config", metavar="CONFIG", help=f"TOML file or bundled configuration: {bundled_configs()}"
    )
    parser.add_argument(
        "--molecule", metavar="NAME", help="use the bundled configuration for it, if there is one"
    )
    parser.add_argument("--data", metavar="FILE", help="training frames; the same as --data.train")
    parser.add_argument(
        "--stop-after", type=int, metavar="N", help="stop after N steps in total; can be continued"
    )
    parser.add_argument(
        "--time", type=parse_time, metavar="T", help="train for about this long: 2h, 90min, 45s"
    )
    parser.add_argument(
        "--prolong", type=int, metavar="N", help="continue a run to N epochs in total"
    )
    parser.add_argument(
        "--members", type=int, metavar="N", help="train a committee of N with different seeds"
    )
    parser.add_argument(
        "--finetune", metavar="MODEL", help="model to start from; the same as --run.finetune"
    )
    parser.add_argument(
        "--pretrain",
        metavar="METHOD",
        help="pretrain on molecular dynamics with gfn2-xtb or another ASE calculator; the same as "
        "--pretraining.calculator",
    )
    add_import_option(parser)


def run(options: argparse.Namespace) -> int:
    """Train a model or a committee; ``options.overrides`` are values of the configuration."""
    path, directory = find_config(options.config, options.molecule)
    given = {
        "--run.directory": directory,
        "--data.train": options.data,
        "--run.finetune": options.finetune,
        "--pretraining.calculator": options.pretrain,
    }
    shorthand = [word for flag, value in given.items() if value for word in (flag, str(value))]
    config = read_config(path, [*shorthand, *options.overrides])
    if options.prolong is not None:
        if options.time or options.members:
            raise ConfigError("--prolong cannot be combined with --time or --members.")
        config = prolonged(config, options.prolong)
    if options.members is not None:
        return _fit_members(config, options.members, options.time)
    model = fit(config, options.stop_after, seconds=options.time)
    if model is None:
        logger.info("Stopped. Run the same command to continue.")
        return 3
    result = json.loads((model.parent / "result.json").read_text(encoding="utf-8"))
    for name in ("validation_errors", "test_errors"):
        if name in result:
            logger.info("%s: %s", name.replace("_", " "), json.dumps(result[name]))
    logger.info("The model is %s; plots are in the same folder.", model)
    return 0


def _fit_members(config: Config, members: int, seconds: float | None) -> int:
    models = fit_members(config, members, seconds)
    if models is None:
        logger.info("Stopped. Run the same command to continue.")
        return 3
    logger.info("The models are %s.", ", ".join(map(str, models)))
    return 0


def _defaults() -> str:
    """Return sections, keys and defaults of the configuration."""
    lines = ["Configuration keys and their defaults:", ""]
    for section in dataclasses.fields(Config):
        values = getattr(Config(), section.name)
        lines.append(f"[{section.name}]")
        lines += [f"{f.name} = {getattr(values, f.name)!r}" for f in dataclasses.fields(values)]
        lines.append("")
    return "\n".join(lines)

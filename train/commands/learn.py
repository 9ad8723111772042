"""lkm-train learn."""

import argparse
import logging
from pathlib import Path

from lkm_calc.commands import (
    Subcommands,
    add_command,
    add_import_option,
    add_open_option,
    read_structure,
    show_page,
)
from lkm_calc.files import expanded
from lkm_calc.page import PageError

from ..config import ConfigError, read_config
from ..learn import LearnSettings, learn, write_learning_page
from .common import bundled_configs, find_config

logger = logging.getLogger("lkm_train")

MANUAL = """\
Train a force field from nothing but a structure. In rounds, a model is trained on all labels so
far and simulates the structure; structures outside its training distribution are labelled and
added. It ends when a whole simulation was within the training distribution.

  lkm-train learn molecule.xyz --labels gfn2-xtb
  lkm-train learn molecule.xyz --labels gfn2-xtb --finetune rmd17-base
  lkm-train learn molecule.xyz --labels dft.py:calculator --sample gfn2-xtb --pretrain gfn2-xtb
  lkm-train learn molecule.xyz --sample gfn2-xtb --labels "bash label.sh {structures} {labels}"

Labels come from gfn2-xtb or gfn1-xtb (pip install lkm-calc[label]), from MODULE:NAME or
FILE.py:NAME of a function or class that returns an ASE calculator, or from a command that reads the
extxyz file {structures} and writes energies and forces to {labels}.

The first structures are from dynamics with the method of --sample, by default that of the labels.
Ctrl-C stops; the same command continues. Every label is saved when it is computed.

Files in --output: model.safetensors, frames.h5 (all labelled frames), rounds.json, learn.html, and
a folder for each round. Options of the training follow as for lkm-train fit, for example
--optimiser.epochs 100.

Exit status: 0 finished, 1 error, 3 interrupted, 4 not finished after the last round (--rounds).
"""

FINETUNED_FIRST = 25
"""Structures that are labelled first if the first model is finetuned."""
NOT_FINISHED = 4
"""Exit status if the last simulation left the training distribution."""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "learn", "active learning from a structure", MANUAL, run)
    default = LearnSettings(labels="")
    parser.add_argument("structure", metavar="STRUCTURE", help="file that ASE can read")
    parser.add_argument("--labels", required=True, metavar="METHOD", help="see above")
    parser.add_argument("--sample", default="", metavar="METHOD", help="see above")
    parser.add_argument(
        "--temperature", type=float, default=default.temperature, help="K; default %(default)s"
    )
    parser.add_argument(
        "--ps",
        type=float,
        default=default.picoseconds,
        help="length of a simulation in ps; default %(default)s",
    )
    parser.add_argument(
        "--timestep", type=float, default=default.timestep, help="fs; default %(default)s"
    )
    parser.add_argument(
        "--first",
        type=int,
        help=f"structures that are labelled first; default {default.first}, or {FINETUNED_FIRST} "
        "with --finetune",
    )
    parser.add_argument(
        "--first-temperature",
        type=float,
        help="temperature of the dynamics they are from in K; default 1.5 times --temperature",
    )
    parser.add_argument(
        "--per-round",
        type=int,
        default=default.per_round,
        help="maximum number of labels in a round; default %(default)s",
    )
    parser.add_argument(
        "--rounds", type=int, default=default.rounds, help="maximum; default %(default)s"
    )
    parser.add_argument(
        "--jobs", type=int, default=default.jobs, help="processes that label; default %(default)s"
    )
    parser.add_argument(
        "--config",
        default="own",
        help=f"configuration of the trainings, default %(default)s: {bundled_configs()}, or a file",
    )
    parser.add_argument("--finetune", metavar="MODEL", help="model to start from")
    parser.add_argument("--pretrain", metavar="METHOD", help="as for lkm-train fit")
    parser.add_argument(
        "--output",
        type=expanded,
        default=Path("runs/learn"),
        metavar="FOLDER",
        help="default %(default)s",
    )
    add_open_option(parser)
    add_import_option(parser)


def run(options: argparse.Namespace) -> int:
    """Learn; ``options.overrides`` are values of the configuration."""
    given = {
        "--data.train": "frames.h5",  # set by every round
        "--run.finetune": options.finetune,
        "--pretraining.calculator": options.pretrain,
    }
    shorthand = [word for flag, value in given.items() if value for word in (flag, str(value))]
    config = read_config(find_config(options.config, None)[0], [*shorthand, *options.overrides])
    try:
        structure = read_structure(options.structure)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    first = FINETUNED_FIRST if config.run.finetune else LearnSettings.first
    settings = LearnSettings(
        labels=options.labels,
        sampler=options.sample,
        temperature=options.temperature,
        picoseconds=options.ps,
        timestep=options.timestep,
        first=first if options.first is None else options.first,
        first_temperature=options.first_temperature,
        per_round=options.per_round,
        rounds=options.rounds,
        jobs=options.jobs,
    )
    rounds = learn(structure, settings, config, options.output)
    if rounds is None:
        logger.info("Stopped. Run the same command to continue.")
        return 3
    logger.info("The model is %s.", options.output / "model.safetensors")
    title = f"Active learning of {structure.get_chemical_formula()} with {settings.labels}"
    try:
        show_page(write_learning_page(rounds, options.output, title), options.open)
    except PageError as error:
        logger.info("learn.html is not written. %s", error)
    if not rounds[-1].finished:
        logger.warning(
            "Not finished: %d structures of the last simulation are outside the training "
            "distribution, or the model is wrong on all validation frames. Run the command again "
            "with --rounds %d.",
            *(rounds[-1].outside, 2 * settings.rounds),
        )
        return NOT_FINISHED
    return 0

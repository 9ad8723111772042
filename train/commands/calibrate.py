"""lkm-train calibrate."""

import argparse
import json

from lkm_calc.commands import Subcommands, add_command, tell
from lkm_calc.files import expanded
from lkm_calc.runtime import fast_matmul

from ..config import ConfigError
from ..data import GraphFrames, structures_of
from ..report import calibrate_file, own_split
from .common import add_measuring_options, model_and_frames

MANUAL = """\
Evaluate a model on labelled held-out frames and store the calibration of the guards of
LKMCalculator(on_extrapolation=...) in its file: quantiles of the force errors, statistics of the
embeddings of training atoms, and the closest distance of each pair of elements in the training
frames. The weights are not changed. lkm-train fit calibrates automatically.

If the validation frames of the training were drawn from DATA, they are used.
"""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    summary = "calibrate the extrapolation guards of a model"
    parser = add_command(commands, "calibrate", summary, MANUAL, run)
    parser.add_argument("model", type=expanded, metavar="MODEL", help="model file to update")
    add_measuring_options(parser)
    parser.add_argument(
        "--train", metavar="FILE", help="training frames of the model, if DATA is another file"
    )


def run(options: argparse.Namespace) -> int:
    """Store the calibration in a model file and print it."""
    if not options.model.is_file():
        raise ConfigError(
            f"There is no file {str(options.model)!r}. Specify the path of a model file."
        )
    model, frames = model_and_frames(options)
    held_out = training = structures_of(frames, options.data)
    split = own_split(model, frames, options.data)
    if split is not None and not len(split.validation):
        raise ConfigError(
            f"{options.data} contains only training frames of the model. Specify the validation "
            "frames, and this file with --train."
        )
    if split is not None:
        training, held_out = frames.select(split.train), frames.select(split.validation)
    if not options.train and (split is None or not len(split.train)):
        raise ConfigError(
            f"{options.data} is not the file that the model was trained on. Specify that file with "
            "--train: the guards need the training frames."
        )
    if options.train:
        options.data = options.train
        frames = model_and_frames(options)[1]
        training = structures_of(frames, options.data)
        split = own_split(model, frames, options.data)
        if split is not None and len(split.train):
            training = frames.select(split.train)
    with fast_matmul():
        found = calibrate_file(
            options.model,
            GraphFrames(held_out, model, model.device),
            GraphFrames(training, model, model.device),
            options.batch_size,
        )
    tell(json.dumps(found.as_data(), indent=1))
    return 0

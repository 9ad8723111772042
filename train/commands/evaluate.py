"""lkm-train evaluate."""

import argparse
import json
from typing import Any

from lkm_calc.commands import Subcommands, add_command, tell
from lkm_calc.runtime import fast_matmul

from ..data import GraphFrames, atom_errors, isolated_atoms, structures_of
from ..report import errors_of, predict
from .common import add_measuring_options, model_and_frames

MANUAL = """\
Print the errors of a model on the frames of a file, as JSON. Isolated atoms
are listed separately.
"""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    summary = "compute errors of a model on labelled frames"
    parser = add_command(commands, "evaluate", summary, MANUAL, run)
    parser.add_argument("model", metavar="MODEL", help="bundled name or model file")
    add_measuring_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print the errors of a model on labelled frames."""
    model, frames = model_and_frames(options)
    isolated = isolated_atoms(frames, options.data)
    figures: dict[str, Any] = {}
    if isolated.n_frames < len(frames):
        data = GraphFrames(structures_of(frames, options.data), model, model.device)
        with fast_matmul():
            figures |= errors_of(predict(model, data, options.batch_size)).figures()
    if isolated.n_frames:
        figures["isolated_atoms"] = atom_errors(model, isolated.energies)
    tell(json.dumps(figures, indent=1))
    return 0

"""lkm-train report."""

import argparse

from lkm_calc import load_model
from lkm_calc.commands import (
    Subcommands,
    add_batch_size_option,
    add_command,
    add_device_option,
    add_import_option,
    add_open_option,
    show_page,
)
from lkm_calc.files import expanded
from lkm_calc.page import check_packages
from lkm_calc.runtime import fast_matmul

from ..data import GraphFrames
from ..fit import check_elements, device_of
from ..report import Measured, held_frames, predict, read_run, write_run_page
from .common import check_batch_size, check_unit

MANUAL = """\
Write an interactive page about a run, report.html in its directory: parity plots, errors against
expected errors, the structures in 3D with forces and force errors, learning curves and settings.
It is a single file, for any browser, without network access. lkm-train fit writes it at the end of
a run. Needs pip install lkm-calc[report].

The test frames of the run are evaluated, or the validation frames if it has no test set.
"""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "report", "write an interactive page about a run", MANUAL, run)
    parser.add_argument("run", type=expanded, metavar="RUN", help="directory of a run")
    parser.add_argument(
        "--data", metavar="FILE", help="labelled frames to evaluate instead, or their new path"
    )
    parser.add_argument(
        "--output", type=expanded, metavar="HTML", help="default: report.html in RUN"
    )
    add_open_option(parser)
    add_device_option(parser)
    add_batch_size_option(parser, 16)
    add_import_option(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate the model of a run and write the page."""
    check_batch_size(options)
    check_packages()
    trained = read_run(options.run)
    model = load_model(trained.model, device=device_of(options.device, "--device"))
    held = held_frames(trained, model, options.data or "")
    source = options.data or f"the {held.name} set of {options.run}"
    check_unit(model, held.frames, source)
    check_elements(model, held.frames, source)
    data = GraphFrames(held.frames, model, model.device)
    with fast_matmul():
        predictions = predict(model, data, options.batch_size)
        found = Measured(model, held, data, predictions, options.batch_size)
        path = options.output or trained.directory / "report.html"
        write_run_page(trained, found, path)
    show_page(path, options.open)
    return 0

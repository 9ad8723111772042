"""lkm-train check-data."""

import argparse
import logging

from lkm_calc.commands import Subcommands, add_command, tell
from lkm_calc.files import expanded
from lkm_calc.page import PageError

from ..data import DataError
from ..doctor import diagnose, plot_report, report_text, write_report_page
from .common import add_data_options, read

logger = logging.getLogger("lkm_train")

MANUAL = """\
Check labelled frames for errors: NaN, units, duplicates, atoms too close, outliers, forces that
are not the negative gradient of the energy, net forces and torques, reference energies.

Exit status: 0 if no errors were found, 1 if errors were found, 2 if the file cannot be read.
"""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    summary = "check labelled frames for errors"
    parser = add_command(commands, "check-data", summary, MANUAL, run)
    add_data_options(parser)
    parser.add_argument(
        "--output",
        type=expanded,
        metavar="FILE",
        help="also write a plot (.png) or an interactive page (.html)",
    )


def run(options: argparse.Namespace) -> int:
    """Print a report on labelled frames, and draw it if requested."""
    try:
        frames = read(options, check_units=False)
    except DataError as error:
        logger.error("lkm-train: %s", error)
        return 2
    report = diagnose(frames)
    tell(report_text(report, options.data))
    if options.output:
        try:
            if options.output.suffix in (".html", ".htm"):
                write_report_page(frames, report, options.data, options.output)
            else:
                plot_report(frames, report, options.output)
        except (OSError, PageError, ValueError) as error:  # folder, packages or image format
            logger.error("lkm-train: --output %s cannot be written: %s", options.output, error)
            return 2
    return 1 if report.faulty else 0

"""lkm-train compare."""

import argparse
from pathlib import Path

from lkm_calc.commands import Subcommands, add_command, add_open_option, show_page
from lkm_calc.files import expanded

from ..report import read_run, write_comparison

MANUAL = """\
Write an interactive page with the learning curves and errors of several runs
and a table of the options that differ. Needs pip install lkm-calc[report].
"""


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "compare", "compare runs on an interactive page", MANUAL, run)
    parser.add_argument(
        "runs", nargs="+", type=expanded, metavar="RUN", help="directories of two runs or more"
    )
    parser.add_argument(
        "--output",
        type=expanded,
        default=Path("compare.html"),
        metavar="HTML",
        help="default: %(default)s",
    )
    add_open_option(parser)


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    write_comparison([read_run(run) for run in options.runs], options.output)
    show_page(options.output, options.open)
    return 0

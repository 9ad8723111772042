"""lkm-train download."""

import argparse
import logging

from lkm_calc.commands import Subcommands, add_command

from ..download import SOURCES, download

logger = logging.getLogger("lkm_train")


def add(commands: Subcommands) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "download", "download a public data set", "", run)
    parser.add_argument("name", metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("folder", metavar="FOLDER")


def run(options: argparse.Namespace) -> int:
    """Download a data set and log its path."""
    logger.info("%s", download(options.name, options.folder))
    return 0

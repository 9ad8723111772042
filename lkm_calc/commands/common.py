"""Shared code of the subcommands: options, models and structures."""

import argparse
import hashlib
import logging
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase

from ..calculator import LKMCalculator
from ..files import expanded, reading_by_ase
from ..files import read_structures as structures_of
from ..potential import bundled_models

logger = logging.getLogger("lkm_calc")

Command = Callable[[argparse.Namespace], int]
"""Runs a subcommand and returns the exit status."""
Subcommands = Any
"""The object that argparse's add_subparsers returns."""

MODEL = "bundled model or path of a model file"
"""Help of the argument MODEL."""


def add_command(
    commands: Subcommands, name: str, summary: str, manual: str, run: Command
) -> argparse.ArgumentParser:
    """Add a subcommand and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=manual,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run, imports=[])
    return parser


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --import, which registers custom architectures."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python file or module that registers a custom architecture; its code is executed",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the argument MODEL."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_import_option(parser)


def add_structure(parser: argparse.ArgumentParser) -> None:
    """Add the argument STRUCTURE."""
    parser.add_argument(
        "structure",
        metavar="STRUCTURE",
        help="file that ASE reads; its first structure is used, or FILE@-1 for the last one",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add the device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def add_dtype_option(parser: argparse.ArgumentParser) -> None:
    """Add the dtype of the calculation."""
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), help="default: dtype of the weights"
    )


def add_batch_size_option(parser: argparse.ArgumentParser, default: int) -> None:
    """Add the number of structures per batch."""
    parser.add_argument("--batch-size", type=int, default=default, help="default %(default)s")


def add_calculator_options(parser: argparse.ArgumentParser) -> None:
    """Add the models, device and dtype."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help=f"{MODEL}; several form a committee"
    )
    add_import_option(parser)
    add_device_option(parser)
    add_dtype_option(parser)


def make_calculator(options: argparse.Namespace, **more: Any) -> LKMCalculator:
    """Return the calculator for the options."""
    models = options.models[0] if len(options.models) == 1 else options.models
    return LKMCalculator(models, options.device, options.dtype, **more)


def model_file(name: str) -> Path:
    """Return the path of a model file, given its path or the name of a bundled model."""
    return bundled_models().get(name, expanded(name))


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_open_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --open, for commands that write a page."""
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def show_page(page: Path, in_browser: bool) -> None:
    """Log the path of a page, and open it if requested."""
    logger.info("%s", page)
    if in_browser and not webbrowser.open(page.resolve().as_uri()):
        logger.warning("No browser was found. Open %s in one.", page)


def tell(text: str) -> None:
    """Write a result to the standard output; messages go to the log."""
    sys.stdout.write(text + "\n")


def read_structure(source: str) -> ase.Atoms:
    """Return the first structure of a file, or the one selected by an index after @.

    Raises:
        ValueError: As for :func:`read_structures`.
    """
    return read_structures(source, 0)[0]


def read_structures(source: str, index: int | slice = slice(None)) -> list[ase.Atoms]:
    """Return the structures of a file, or those selected by an index or slice after @.

    Raises:
        ValueError: The file does not exist, cannot be read, or contains no structure.
    """
    source = str(expanded(source))
    name, at, chosen = source.rpartition("@")
    path = Path(name if at and not Path(source).exists() else source)
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist. Pass a file that ASE can read.")
    wanted: Any = index if path == Path(source) else chosen
    with reading_by_ase(source):
        structures = structures_of(path, wanted)
    if not structures or not all(len(atoms) for atoms in structures):
        raise ValueError(f"{source} contains no structure or one without atoms. Check the file.")
    return structures

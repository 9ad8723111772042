"""What several subcommands share: models, structures, and how a command is described."""

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase

from ..calculator import LKMCalculator
from ..files import expanded, reading_by_ase
from ..files import read_structures as structures_of
from ..potential import bundled_models

Command = Callable[[argparse.Namespace], int]
"""Does the work of a subcommand and returns the exit status."""
Subcommands = Any
"""What argparse's add_subparsers returns."""

MODEL = "bundled model, or path of a model file"
"""What a model is on the command line."""


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
    """Add what makes architectures known that no installed package offers."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python file or module that registers an architecture of your own, whose code is run",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the one model that a subcommand is about."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_import_option(parser)


def add_structure(parser: argparse.ArgumentParser) -> None:
    """Add the structure that a subcommand starts from."""
    parser.add_argument(
        "structure",
        metavar="STRUCTURE",
        help="file that ASE reads; its first structure, or FILE@-1 for the last one",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add the device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def add_dtype_option(parser: argparse.ArgumentParser) -> None:
    """Add the type that numbers are computed in."""
    parser.add_argument("--dtype", choices=("float32", "float64"), help="that of the weights")


def add_batch_size_option(parser: argparse.ArgumentParser, default: int) -> None:
    """Add the number of structures that are computed at once."""
    parser.add_argument("--batch-size", type=int, default=default, help="default %(default)s")


def add_calculator_options(parser: argparse.ArgumentParser) -> None:
    """Add the models and how to compute with them."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help=f"{MODEL}; several make a committee"
    )
    add_import_option(parser)
    add_device_option(parser)
    add_dtype_option(parser)


def make_calculator(options: argparse.Namespace, **more: Any) -> LKMCalculator:
    """Return the calculator of the options."""
    models = options.models[0] if len(options.models) == 1 else options.models
    return LKMCalculator(models, options.device, options.dtype, **more)


def model_file(name: str) -> Path:
    """Return the file of a model that could be loaded."""
    return bundled_models().get(name, expanded(name))


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tell(text: str) -> None:
    """Write a result to the standard output; messages go to the log."""
    sys.stdout.write(text + "\n")


def read_structure(source: str) -> ase.Atoms:
    """Return the first structure of a file, or the one that follows an @.

    Raises:
        ValueError: As for :func:`read_structures`.
    """
    return read_structures(source, 0)[0]


def read_structures(source: str, index: int | slice = slice(None)) -> list[ase.Atoms]:
    """Return structures of a file; an @ with an index or a slice after its name chooses.

    Raises:
        ValueError: There is no such file, it cannot be read, or it holds no structure.
    """
    source = str(expanded(source))
    name, at, chosen = source.rpartition("@")
    path = Path(name if at and not Path(source).exists() else source)
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist. Give a file that ASE reads.")
    wanted: Any = index if path == Path(source) else chosen
    with reading_by_ase(source):
        structures = structures_of(path, wanted)
    if not structures or not all(len(atoms) for atoms in structures):
        raise ValueError(f"{source} holds no structure, or an empty one. Give a file that does.")
    return structures

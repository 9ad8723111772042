"""Version information."""

import argparse
import platform
from importlib import metadata

import torch


def package_version() -> str:
    """Return the version of the installed package."""
    try:
        return metadata.version("lkm-calc")
    except metadata.PackageNotFoundError:
        return "not installed"


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add the option --version, which prints the versions needed in bug reports."""
    text = f"lkm-calc {package_version()}, torch {torch.__version__}, Python "
    parser.add_argument("--version", action="version", version=text + platform.python_version())

"""Which versions are at work."""

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
    """Add the option --version, which prints what a bug report should hold."""
    text = f"lkm-calc {package_version()}, torch {torch.__version__}, Python "
    parser.add_argument("--version", action="version", version=text + platform.python_version())

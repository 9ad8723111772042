"""Libraries of C++ functions, built for this processor by the compiler at hand and kept."""

import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from ...files import (
    CompileError,
    cache_folder,
    check_owner,
    first_line,
    open_folder,
    processor,
    write_program,
)

logger = logging.getLogger("lkm_calc")

SOURCES = Path(__file__).parent / "cpp"
SHARED = SOURCES / "shared"
"""Headers that the sources include."""
COMPILERS = ("c++", "g++", "clang++")
"""Tried in this order where $CXX is not set."""
PACKAGE = "ziglang"
"""Where none of them is there: a compiler from PyPI (extra ``compiler``), without OpenMP."""
OPTIONS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=fast")
CHOICES = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
"""Options of which the first that a compiler takes are used."""


def library(name: str, folder: Path | None) -> ctypes.CDLL:
    """Return the library of a source, built first if the folder holds none for this processor.

    Args:
        name: That of the source, without its ending.
        folder: Where libraries are kept, that of :func:`lkm_calc.files.cache_folder` if not
            given.

    Raises:
        CompileError: There is no working compiler, or the folder cannot be used.
    """
    try:
        place = open_folder(folder)
        compiler = _compiler()
        path = place / f"{name}-{_fingerprint(name, compiler)}.so"
        if not path.exists():
            _build(name, compiler, path)
        check_owner(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(
            f"the program cannot be used ({first_line(error)}). "
            f"Delete it from {folder or cache_folder()}, or name another folder in $LKM_CACHE."
        ) from error


def _compiler() -> tuple[str, ...]:
    """Return the command of a C++ compiler.

    Raises:
        CompileError: There is none, or not the one that $CXX names.
    """
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise CompileError(
            f"$CXX is {os.environ['CXX']!r}, which is no command ({error}). Correct or unset it."
        ) from error
    if asked:
        path = shutil.which(asked[0])
        if path is None:
            raise CompileError(f"$CXX names {asked[0]}, which is not there. Correct or unset it.")
        return (path, *asked[1:])
    for name in COMPILERS:
        if path := shutil.which(name):
            return (path,)
    package = importlib.util.find_spec(PACKAGE)
    if package is not None and package.origin is not None and sys.executable:
        return (sys.executable, "-m", PACKAGE, "c++")
    raise CompileError(
        f"there is no C++ compiler: $CXX is not set, and {', '.join(COMPILERS)} are not there. "
        'Install g++ or clang, or take one from PyPI: pip install "lkm-calc[compiler]".'
    )


@cache
def _fingerprint(name: str, compiler: tuple[str, ...]) -> str:
    """Return a name that changes with the sources, the compiler and the processor."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    about = repr([OPTIONS, CHOICES, compiler, version, platform.machine(), processor()])
    digest = hashlib.sha256(about.encode())
    for source in (_source(name), *sorted(SHARED.glob("*.hpp"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _source(name: str) -> Path:
    return SOURCES / f"{name}.cpp"


def _build(name: str, compiler: tuple[str, ...], path: Path) -> None:
    """Write the library, whole or not at all.

    Raises:
        CompileError: The compiler fails.
    """
    how_long = "a minute or two" if PACKAGE in compiler else "seconds"
    logger.warning(
        "Compiling %s for this processor: %s, once; kept in %s.", name, how_long, path.parent
    )
    began = time.perf_counter()
    # Without a home it knows no folder of its own.
    surroundings = {"ZIG_GLOBAL_CACHE_DIR": str(path.parent / "zig"), **os.environ}
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / path.name
        for choice in CHOICES:
            command = [*compiler, *OPTIONS, *choice, str(_source(name)), "-o", str(made)]
            found = subprocess.run(
                command, capture_output=True, text=True, check=False, env=surroundings
            )
            if found.returncode == 0:
                break
        else:
            raise CompileError(
                f"{' '.join(command)} failed: {found.stderr.strip()[-1000:]}. Name another C++ "
                "compiler in $CXX, such as g++ 12, or do without compile."
            )
        write_program(path, made.read_bytes())
    logger.warning("Compiled in %.0f s.", time.perf_counter() - began)

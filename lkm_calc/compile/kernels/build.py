"""Build and cache C++ libraries, optimised for the local processor."""

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
"""Compilers tried in this order if $CXX is not set."""
PACKAGE = "ziglang"
"""Fallback if none of them is found: a compiler from PyPI (extra ``compiler``), without OpenMP."""
OPTIONS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=fast")
CHOICES = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
"""Sets of options; the first one that the compiler accepts is used."""


def library(name: str, folder: Path | None) -> ctypes.CDLL:
    """Return the library of a source, building it first if it is not cached for this processor.

    Args:
        name: Name of the source without the suffix.
        folder: Cache folder, by default :func:`lkm_calc.files.cache_folder`.

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
            f"Delete it from {folder or cache_folder()}, or set $LKM_CACHE to another folder."
        ) from error


def _compiler() -> tuple[str, ...]:
    """Return the command of a C++ compiler.

    Raises:
        CompileError: No compiler is found, or $CXX is not a valid command.
    """
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise CompileError(
            f"$CXX is {os.environ['CXX']!r}, which is not a command ({error}). Correct or unset it."
        ) from error
    if asked:
        path = shutil.which(asked[0])
        if path is None:
            raise CompileError(f"$CXX is {asked[0]}, which was not found. Correct or unset it.")
        return (path, *asked[1:])
    for name in COMPILERS:
        if path := shutil.which(name):
            return (path,)
    package = importlib.util.find_spec(PACKAGE)
    if package is not None and package.origin is not None and sys.executable:
        return (sys.executable, "-m", PACKAGE, "c++")
    raise CompileError(
        f"there is no C++ compiler: $CXX is not set, and {', '.join(COMPILERS)} were not found. "
        'Install g++ or clang, or a compiler from PyPI: pip install "lkm-calc[compiler]".'
    )


@cache
def _fingerprint(name: str, compiler: tuple[str, ...]) -> str:
    """Return a hash of the sources, the compiler and the processor."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    about = repr([OPTIONS, CHOICES, compiler, version, platform.machine(), processor()])
    digest = hashlib.sha256(about.encode())
    for source in (_source(name), *sorted(SHARED.glob("*.hpp"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _source(name: str) -> Path:
    return SOURCES / f"{name}.cpp"


def _build(name: str, compiler: tuple[str, ...], path: Path) -> None:
    """Build a library and write it atomically.

    Raises:
        CompileError: The compiler failed.
    """
    how_long = "a minute or two" if PACKAGE in compiler else "seconds"
    logger.warning(
        "Compiling %s for this processor. This takes %s; the result is cached in %s.",
        name,
        how_long,
        path.parent,
    )
    began = time.perf_counter()
    # Without a home directory, zig has no default for its cache.
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
                f"{' '.join(command)} failed: {found.stderr.strip()[-1000:]}. Set $CXX to another "
                "C++ compiler, such as g++ 12, or disable compile."
            )
        write_program(path, made.read_bytes())
    logger.warning("Compiled in %.0f s.", time.perf_counter() - began)

"""Cache of compiled code and checks of its ownership.

Compiled code is loaded only from a folder and files that belong to the user.
"""

import os
import platform
import subprocess
from pathlib import Path

from .atomic import replacing
from .paths import expanded


class CompileError(RuntimeError):
    """Compilation failed, or the compiled code gives different results than the model."""


COMPILER_ERRORS = (ImportError, OSError, RuntimeError, subprocess.SubprocessError)
"""Errors of torch's compilers, the compilers that they call, and drivers; torch wraps its own
errors in RuntimeError. Errors that indicate bugs here, such as TypeError, are not included."""


def first_line(error: Exception) -> str:
    """Return the first line of an error message, or the type of the error if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cache_folder() -> Path:
    """Return the folder of compiled code: $LKM_CACHE, or lkm-calc in the user's cache folder.

    Raises:
        CompileError: The user has no home folder, as in some containers.
    """
    if asked := os.environ.get("LKM_CACHE"):
        return expanded(asked)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return expanded(base) / "lkm-calc"
    try:
        return Path.home() / ".cache" / "lkm-calc"
    except RuntimeError as error:
        raise CompileError(
            "there is no home directory for compiled code. Set LKM_CACHE to a folder of your own."
        ) from error


def open_folder(folder: Path | None) -> Path:
    """Return the given folder or :func:`cache_folder`, created if necessary.

    Raises:
        CompileError: Other users can write to it, or the user has no home folder.
    """
    folder = folder or cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_owner(folder)
    return folder


def check_owner(place: Path) -> None:
    """Raise a CompileError if other users can write to a file or folder."""
    if hasattr(os, "getuid"):
        found = place.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise CompileError(
                f"{place} belongs to or is writable by another user, so compiled code in it cannot "
                "be trusted. Set LKM_CACHE to a folder of your own with mode 700."
            )


def not_compiled(what: str, error: Exception) -> CompileError:
    """Return the error for something that torch's compiler failed on."""
    return CompileError(
        f"the {what} could not be compiled ({first_line(error)}). "
        "A C++ compiler such as g++ is needed."
    )


def write_program(path: Path, content: bytes) -> None:
    """Write a program whole or not at all, for nobody but the user."""
    with replacing(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(content)


def processor() -> str:
    """Return the instruction sets of the processor, all of which compiled code may use."""
    about = Path("/proc/cpuinfo")
    if not about.exists():
        return platform.processor()
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")

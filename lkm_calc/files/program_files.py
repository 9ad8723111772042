"""Where compiled programs are kept, and who may have written them.

A program is code: it is loaded only from a folder and files that belong to the user.
"""

import os
import platform
import subprocess
from pathlib import Path

from .atomic import replacing
from .paths import expanded


class CompileError(RuntimeError):
    """A program cannot be made, or computes something else than the model."""


COMPILER_ERRORS = (ImportError, OSError, RuntimeError, subprocess.SubprocessError)
"""What torch's compilers, those that they call, and drivers raise; torch wraps what fails in its
own in RuntimeErrors. Not what faults of this program raise, such as TypeError."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cache_folder() -> Path:
    """Return the folder of compiled programs: $LKM_CACHE, or lkm-calc in the user's cache.

    Raises:
        CompileError: The user has no home, as in a container with a number for a user.
    """
    if asked := os.environ.get("LKM_CACHE"):
        return expanded(asked)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return expanded(base) / "lkm-calc"
    try:
        return Path.home() / ".cache" / "lkm-calc"
    except RuntimeError as error:
        raise CompileError(
            "there is no home directory to keep programs in. Set LKM_CACHE to a folder of your own."
        ) from error


def open_folder(folder: Path | None) -> Path:
    """Return the folder, that of :func:`cache_folder` if not given, made if there is none.

    Raises:
        CompileError: Somebody else could write into it, or there is no such folder.
    """
    folder = folder or cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_owner(folder)
    return folder


def check_owner(place: Path) -> None:
    """Raise a CompileError if somebody else could write a program, or into their folder."""
    if hasattr(os, "getuid"):
        found = place.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise CompileError(
                f"{place} belongs to, or can be written by, another user, and a program is code. "
                "Set LKM_CACHE to a folder of your own with mode 700."
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
    """Return what instructions the processor has; programs use all of them."""
    about = Path("/proc/cpuinfo")
    if not about.exists():
        return platform.processor()
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")

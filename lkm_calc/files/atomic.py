"""Files that appear whole or not at all."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .paths import expanded

DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""What the system says where there is no room for a file: the disk, its largest size, a quota."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it there at the end, or remove it on error.

    A reader never sees a half-written file, and a failed write leaves the old one as it was.
    """
    path = expanded(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp would make a file that only its owner can read.
    temporary = path.parent / f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # A full disk does not say what was to be written; other errors have their own words.
        if error.errno in DISK_FULL and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)

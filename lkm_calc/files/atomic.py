"""Atomic replacement of files."""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .paths import expanded

DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Error codes for a full disk, the file size limit and quotas."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; rename it on success, remove it on error.

    Readers never see a partially written file, and a failed write leaves the old file unchanged.
    """
    path = expanded(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp would create a file that only its owner can read.
    temporary = path.parent / f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # The error of a full disk does not name the file; other errors keep their message.
        if error.errno in DISK_FULL and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)

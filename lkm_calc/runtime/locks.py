"""One at a time: threads of a process, and processes in a folder."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class ThreadLock:
    """A lock that a thread may take twice; copies and pickles of it are locks of their own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["ThreadLock"], tuple[()]]:
        """Hold nothing: what a thread has locked here is free in a copy."""
        return ThreadLock, ()


class FolderInUseError(OSError):
    """Another process works in a folder."""


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder, which is made if it is not there.

    The system takes the lock back when the process ends, however it ends. File systems without
    locks, as some shared ones are, let everybody in.

    Raises:
        FolderInUseError: One is in it.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = _locked(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
        with suppress(OSError):  # unless there is something in it now
            for one in made:
                one.rmdir()


def _locked(folder: Path) -> int | None:
    """Return a handle that holds the lock while it is open, or None where there are no locks."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise FolderInUseError(
            f"Another process works in {folder}. Wait for it to end, or choose another folder."
        ) from error
    except OSError:
        os.close(handle)
        return None
    return handle

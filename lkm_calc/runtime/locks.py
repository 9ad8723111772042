"""Locks for threads of a process and for processes in a folder."""

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
    """A re-entrant lock that can be copied and pickled; copies are independent, unlocked locks."""

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
        """Return a new, unlocked lock for copies."""
        return ThreadLock, ()


class FolderInUseError(OSError):
    """Another process is using a folder."""


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that call this function; create it if necessary.

    The system releases the lock when the process ends. On file systems without locks, such as some
    shared ones, there is no protection.

    Raises:
        FolderInUseError: Another process holds the lock.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = _locked(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
        with suppress(OSError):  # not empty any more
            for one in made:
                one.rmdir()


def _locked(folder: Path) -> int | None:
    """Return a handle that holds the lock while it is open, or None if locks are unsupported."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise FolderInUseError(
            f"Another process is using {folder}. Wait until it ends, or choose another folder."
        ) from error
    except OSError:
        os.close(handle)
        return None
    return handle

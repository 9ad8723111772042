"""One at a time: threads of a process, and processes in a folder."""

import threading
from types import TracebackType


class ThreadLock:
    """A lock that a thread may take twice, and of which copies and pickles are locks of their own."""

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

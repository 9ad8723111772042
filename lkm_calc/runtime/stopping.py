"""Signals that end a long run in good order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM into a list instead of dying in the middle of a step."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received:  # asked twice: at once
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

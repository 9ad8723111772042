"""Number of CPU threads for a computation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ROWS_PER_THREAD = 2500
"""Minimum number of rows, that is of edges, per thread. Two threads took 1.1 times as long as one
with 300 rows and equally long with 5000; on busy cores, threads that synchronise after every small
piece of work took a hundred times as long."""


def threads_worth(rows: int) -> int:
    """Return the number of threads for a number of rows, at most torch's current setting."""
    return min(torch.get_num_threads(), max(1, rows // ROWS_PER_THREAD))


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """Set torch's number of threads by the number of rows temporarily, at most the current setting.

    The number depends only on the size, so that results of a structure are bitwise reproducible.
    The setting is that of the calling thread.

    Args:
        rows: Number of rows of the larger products, that is of edges.
    """
    before = torch.get_num_threads()
    wanted = threads_worth(rows)
    if wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""How many threads of the CPU a computation takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ROWS_PER_THREAD = 2500
"""Number of rows, that is of edges, that a thread must have. With 300 rows two threads took 1.1
times as long as one, with 5000 as long; where other work keeps the cores busy, threads that wait
for each other after every small piece of work took a hundred times as long."""


def threads_worth(rows: int) -> int:
    """Return how many threads torch may take for so many rows, no more than it is set to."""
    return min(torch.get_num_threads(), max(1, rows // ROWS_PER_THREAD))


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """Let torch take one thread for every so many rows, and no more than it is set to, for a while.

    The number follows from the size alone, so that the same structure gives the same bits. The
    setting, which is that of the calling thread, is restored on leaving.

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

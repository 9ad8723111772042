"""Scatter sums, counts and ragged segments."""

import torch
from jaxtyping import Int
from torch import Tensor


def sum_to(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum rows (n, ...) with the same index (n) into a new tensor (size, ...)."""
    return rows.new_zeros(size, *rows.shape[1:]).index_add(0, index, rows)


def count(index: Int[Tensor, " rows"], size: int) -> Int[Tensor, " size"]:
    """Count occurrences of 0 .. size-1, without the GPU synchronisation of bincount."""
    return index.new_zeros(size).index_add(0, index, torch.ones_like(index))


def ragged(
    starts: Int[Tensor, " segments"], counts: Int[Tensor, " segments"], total: int | None = None
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Return the rows ``starts[s] .. starts[s] + counts[s] - 1`` of every segment s, and s.

    Args:
        starts: First row of each segment.
        counts: Number of rows of each.
        total: Their sum; if given, there is no GPU synchronisation.
    """
    segment = torch.repeat_interleave(counts, output_size=total)
    offset = starts - (counts.cumsum(0) - counts)
    return torch.arange(len(segment), device=starts.device) + offset[segment], segment

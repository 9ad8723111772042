"""Neighbour lists: which atoms, or periodic images of atoms, lie within the cut-off."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import vesin
from numpy.typing import ArrayLike, NDArray


class EdgeList(NamedTuple):
    """Directed edges source → target, both directions of each pair present.

    Sorted by target, then source, then shift. The vector of an edge is
    ``positions[target] - positions[source] + shift @ cell``.
    """

    edge_index: NDArray[np.int64]
    """(2, edges): row 0 the source j, row 1 the target i."""
    shifts: NDArray[np.int64]
    """(edges, 3): whole cell vectors to add; zero where nothing is periodic."""
    reverse: NDArray[np.int64]
    """(edges): position of the same pair, same image, in the opposite direction."""

    slot: NDArray[np.int64]
    """(edges): the place of each among the edges into the same atom, from 0."""

    @property
    def max_neighbours(self) -> int:
        """The largest number of edges into an atom."""
        return int(self.slot.max(initial=-1)) + 1


def neighbour_list(
    positions: ArrayLike,
    cutoff: float,
    cell: ArrayLike | None = None,
    pbc: Sequence[bool] | NDArray[np.bool_] = (False, False, False),
) -> EdgeList:
    """Return every pair closer than ``cutoff``, with no limit on the number of neighbours.

    Args:
        positions: (atoms, 3) in Å, finite; they may lie outside the cell.
        cutoff: Cut-off in Å; it may exceed the cell.
        cell: (3, 3), rows in Å; rows of non-periodic directions need only be independent.
        pbc: Which of the three directions repeat.

    Raises:
        ValueError: The atoms are spread over a space far too large, or the cell is flat.
    """
    points = np.asarray(positions, dtype=np.float64)
    box = np.eye(3) if cell is None else np.asarray(cell, dtype=np.float64)
    _check_extent(points, box, np.asarray(pbc, dtype=bool), cutoff)
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    source, target, shifts = search.compute(points, box, np.asarray(pbc, dtype=bool), "ijS")
    shifts = shifts.astype(np.int64)
    order = np.lexsort((*shifts.T[::-1], source, target))
    source = source[order].astype(np.int64)
    target = target[order].astype(np.int64)
    shifts = shifts[order]
    # Sorting the flipped edges lines them up with the sorted ones: the k-th of both is one edge.
    flipped = np.lexsort((*(-shifts).T[::-1], target, source))
    reverse = np.empty_like(source)
    reverse[flipped] = np.arange(len(source))
    slot = np.arange(len(target)) - np.searchsorted(target, target)
    return EdgeList(np.stack([source, target]), shifts, reverse, slot)


MAX_SPAN = 1000.0
"""Largest distance in Å that atoms may spread over in a direction that does not repeat."""
MAX_CELLS = 100_000
"""Largest number of search cells of the size of the cut-off; the search fails with many more."""


def _check_extent(
    points: NDArray[np.float64], box: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
) -> None:
    """Raise a ValueError for a structure that the search cannot handle."""
    if pbc.any() and abs(np.linalg.det(box)) < 1e-6 * np.prod(np.linalg.norm(box, axis=1)):
        raise ValueError(
            f"The cell {box.tolist()} is flat: its vectors are parallel or in one plane. Set "
            "atoms.cell to three independent vectors."
        )
    span = np.ptp(points, axis=0)
    if not pbc.all() and span.max() > MAX_SPAN:
        raise ValueError(
            f"The atoms spread over {span.max():.4g} Å, more than {MAX_SPAN:g} Å. A simulation "
            "that blew up? Go back to the last good structure, or compute distant parts apart."
        )
    extent = np.where(pbc, np.linalg.norm(box, axis=1), span.max())
    cells = np.prod(np.ceil(extent / cutoff) + 1) if pbc.any() else np.prod(span / cutoff + 1)
    if cells > MAX_CELLS:
        raise ValueError(
            f"The cell of {np.round(extent, 1).tolist()} Å is too large for a cut-off of "
            f"{cutoff:g} Å. Check atoms.cell, or compute parts of the structure apart."
        )

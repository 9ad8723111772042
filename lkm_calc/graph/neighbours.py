"""Neighbour lists: all pairs of atoms and periodic images within a cutoff."""

import math
from collections.abc import Callable, Sequence
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
    """(edges, 3): integer multiples of cell vectors to add; zero if not periodic."""
    reverse: NDArray[np.int64]
    """(edges): index of the reverse edge, for the same image."""
    slot: NDArray[np.int64]
    """(edges): index of each edge among those into the same atom, from 0."""
    shortest: float
    """Length of the shortest edge in Å, infinite if there is none."""

    @property
    def max_neighbours(self) -> int:
        """The largest number of edges into an atom."""
        return int(self.slot.max(initial=-1)) + 1


class Candidates(NamedTuple):
    """Edges within a radius, in the order of an :class:`EdgeList`, from which shorter are selected.

    Lengths are computed elementwise, so that an edge and its reverse have bitwise identical lengths
    in every list; rounding in a matrix product may depend on its shape.
    """

    edge_index: NDArray[np.int64]
    shifts: NDArray[np.int64]
    reverse: NDArray[np.int64]

    def within(
        self, cutoff: float, points: NDArray[np.float64], box: NDArray[np.float64]
    ) -> EdgeList:
        """Return the edges no longer than ``cutoff`` Å.

        Args:
            cutoff: At most the radius of the candidates.
            points: (atoms, 3) in Å.
            box: (3, 3), rows in Å.
        """
        squared = self._squared_lengths(points, box)
        near = squared <= cutoff * cutoff
        found = self._select(near)
        targets = found.edge_index[1]
        counts = np.bincount(targets, minlength=len(points))
        slot = np.arange(len(targets)) - np.repeat(np.cumsum(counts) - counts, counts)
        shortest = math.sqrt(squared[near].min(initial=math.inf))
        return EdgeList(*found, slot, shortest)

    def nearer(
        self, radius: float, points: NDArray[np.float64], box: NDArray[np.float64]
    ) -> "Candidates":
        """Return the candidates within a smaller radius in Å."""
        return self._select(self._squared_lengths(points, box) <= radius * radius)

    def _squared_lengths(
        self, points: NDArray[np.float64], box: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        source, target = self.edge_index
        shifts = self.shifts.T.astype(np.float64, order="C") if self.shifts.any() else None
        squared = np.zeros(len(target))
        for along, steps in zip(np.ascontiguousarray(points.T), box.T, strict=True):
            difference = along.take(target) - along.take(source)
            if shifts is not None:
                for axis in np.flatnonzero(steps):
                    difference += shifts[axis] * steps[axis]
            squared += difference * difference
        return squared

    def _select(self, near: NDArray[np.bool_]) -> "Candidates":
        """Return a selection of edges, with updated reverse edges."""
        kept = np.flatnonzero(near)
        reverse = (np.cumsum(near) - 1)[self.reverse[kept]]
        return Candidates(self.edge_index[:, kept], self.shifts[kept], reverse)


Search = Callable[[NDArray[np.float64], float, NDArray[np.float64], NDArray[np.bool_]], EdgeList]
"""Neighbour search: :func:`neighbour_list` or a callable with the same arguments."""

MARGIN = 1e-6
"""Margin in Å added to the search radius, so that only :meth:`Candidates.within` decides about
pairs at the cutoff."""


def neighbour_list(
    positions: ArrayLike,
    cutoff: float,
    cell: ArrayLike | None = None,
    pbc: Sequence[bool] | NDArray[np.bool_] = (False, False, False),
) -> EdgeList:
    """Return all pairs within ``cutoff``, without a limit on the number of neighbours.

    Args:
        positions: (atoms, 3) in Å, finite; they may lie outside the cell.
        cutoff: Cutoff in Å; it may exceed the cell.
        cell: (3, 3), rows in Å; rows of non-periodic directions need only be independent.
        pbc: Which of the three directions are periodic.

    Raises:
        ValueError: The structure is too extended, or the cell is flat.
    """
    points = np.asarray(positions, dtype=np.float64)
    box = np.eye(3) if cell is None else np.asarray(cell, dtype=np.float64)
    return candidates(points, cutoff, box, np.asarray(pbc, dtype=bool)).within(cutoff, points, box)


def candidates(
    points: NDArray[np.float64],
    cutoff: float,
    box: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    skin: float = 0.0,
) -> Candidates:
    """Return all pairs within ``cutoff + skin`` Å, and few others.

    Arguments and errors are those of :func:`neighbour_list`.
    """
    _check_extent(points, box, pbc)
    wanted = cutoff + skin + MARGIN
    radius = _search_radius(points, box, pbc, wanted)
    search = vesin.NeighborList(cutoff=radius, full_list=True, n_threads=1)
    source, target, shifts = search.compute(points, box, pbc, "ijS")
    source, target, shifts = (found.astype(np.int64) for found in (source, target, shifts))
    images = shifts.T if shifts.any() else shifts.T[:0]
    order = _order(target, source, *images)
    source, target, shifts = source[order], target[order], shifts[order]
    # The reversed edges, sorted, are in the same order as the sorted edges.
    reverse = np.empty_like(order)
    reverse[_order(source, target, *-images[:, order])] = np.arange(len(order))
    found = Candidates(np.stack([source, target]), shifts, reverse)
    return found if radius == wanted else found.nearer(wanted, points, box)


def _order(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lexicographic order of rows, which are all different."""
    key, values = columns[0], int(columns[0].max(initial=0)) + 1
    for column in columns[1:]:
        low = int(column.min(initial=0))
        width = int(column.max(initial=0)) - low + 1
        key, values = key * width + (column - low), values * width
    # Sorting by one combined key is many times faster than sorting by each column.
    return np.argsort(key) if values < 2**63 else np.lexsort(columns[::-1])


USUAL = 5.0
"""Minimum search radius in Å: a smaller one could exceed the maximum number of search cells for
structures that models can handle."""


def edges_within(
    positions: NDArray[np.float64],
    radius: float,
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs (2, edges) within a radius, which may be short, and their distances in Å.

    Arguments and errors are those of :func:`neighbour_list`.
    """
    edges = neighbour_list(positions, max(radius, USUAL), cell, pbc)
    source, target = edges.edge_index
    vectors = positions[target] - positions[source] + edges.shifts @ cell
    lengths = np.linalg.norm(vectors, axis=1)
    near = lengths <= radius
    return edges.edge_index[:, near], lengths[near]


MAX_SPAN = 1000.0
"""Largest extent in Å of a structure in a non-periodic direction."""
MAX_CELLS = 100_000
"""Largest number of search cells; the search fails with many more."""
CELLS_AN_ATOM = 20
"""Number of search cells per atom if cells are enlarged to avoid more than MAX_CELLS."""
WIDER = 1.25
"""Factor by which the cells are enlarged repeatedly."""


def _search_radius(
    points: NDArray[np.float64], box: NDArray[np.float64], pbc: NDArray[np.bool_], wanted: float
) -> float:
    """Return the search radius, enlarged for structures with much empty space.

    A molecule in a periodic box of 1000 Å, as some MD engines require, has few pairs at any radius.
    """
    span = np.ptp(points, axis=0)
    extent = np.where(pbc, np.linalg.norm(box, axis=1), span.max() if pbc.any() else span)

    def cells(radius: float) -> float:
        return float(np.prod(np.ceil(extent / radius) + 1))

    if cells(wanted) <= MAX_CELLS:
        return wanted
    few = min(MAX_CELLS, max(1000, CELLS_AN_ATOM * len(points)))
    radius = wanted
    while cells(radius) > few:
        radius *= WIDER
    return radius


def _check_extent(
    points: NDArray[np.float64], box: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> None:
    """Raise a ValueError for a structure that the search cannot handle."""
    if pbc.any() and abs(np.linalg.det(box)) < 1e-6 * np.prod(np.linalg.norm(box, axis=1)):
        raise ValueError(
            f"The cell {box.tolist()} is flat: its vectors are linearly dependent. Set atoms.cell "
            "to three independent vectors."
        )
    span = np.ptp(points, axis=0)
    if not pbc.all() and span.max() > MAX_SPAN:
        raise ValueError(
            f"The atoms spread over {span.max():.4g} Å, more than {MAX_SPAN:g} Å. If a simulation "
            "diverged, go back to the last valid structure; otherwise compute distant parts "
            "separately."
        )

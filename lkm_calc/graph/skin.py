"""Verlet neighbour lists: candidates are reused between steps and filtered exactly at each step."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .neighbours import Candidates, EdgeList, candidates


class Searched(NamedTuple):
    """The candidates and the structure for which they were searched."""

    candidates: Candidates
    points: NDArray[np.float64]
    box: NDArray[np.float64]
    pbc: NDArray[np.bool_]


class VerletList:
    """Verlet neighbour list for a sequence of structures, such as MD steps.

    All pairs within ``cutoff + skin`` are kept as candidates, and pairs within the cutoff are
    selected at every call. The edges are identical to those of a new search, in the same order.

    A pair beyond ``cutoff + skin`` at the time of the search is now farther apart than
    (cutoff + skin) · s − 2 u, where s is the smallest stretch of the cell in any direction (1 for
    an unchanged cell) and u the largest minimum-image displacement of an atom beyond that stretch.
    The candidates are reused as long as this is at least the cutoff.

    Args:
        cutoff: Largest cutoff in Å that will be requested.
        skin: In Å; atoms can move by half of it before the next search.

    Raises:
        ValueError: The skin is negative or not finite.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        check_skin(skin)
        self.cutoff = cutoff
        self.skin = skin
        self._searched: Searched | None = None

    def __call__(
        self,
        points: NDArray[np.float64],
        cutoff: float,
        box: NDArray[np.float64],
        pbc: NDArray[np.bool_],
    ) -> EdgeList:
        """Return all pairs within ``cutoff``, like :func:`neighbour_list`.

        Raises:
            ValueError: As for that function, or the cutoff exceeds that of the list.
        """
        if cutoff > self.cutoff:
            raise ValueError(
                f"The cutoff of {cutoff:g} Å exceeds that of the Verlet list, {self.cutoff:g} Å."
            )
        images = self._images_passed(points, box, pbc)
        if self._searched is None or images is None:
            found = candidates(points, self.cutoff, box, pbc, self.skin)
            self._searched = Searched(found, points.copy(), box.copy(), pbc.copy())
            return found.within(cutoff, points, box)
        found = self._searched.candidates
        if images.any():
            # The order is unchanged: all images of a pair are shifted equally.
            source, target = found.edge_index
            found = found._replace(shifts=found.shifts + images[source] - images[target])
        return found.within(cutoff, points, box)

    def _images_passed(
        self, points: NDArray[np.float64], box: NDArray[np.float64], pbc: NDArray[np.bool_]
    ) -> NDArray[np.int64] | None:
        """Return the cell vectors by which each atom was wrapped since the search, (atoms, 3).

        None if the candidates may lack a pair.
        """
        old = self._searched
        if old is None or old.points.shape != points.shape or not np.array_equal(old.pbc, pbc):
            return None
        start, radius = old.points, self.cutoff + self.skin
        if pbc.any() and not np.array_equal(old.box, box):
            deformation = np.linalg.solve(old.box, box)
            start = start @ deformation
            radius *= float(np.linalg.norm(deformation, -2))  # the smallest singular value
            if not radius >= self.cutoff:
                return None
        moved = points - start
        images = np.zeros(points.shape, dtype=np.int64)
        if pbc.any():
            images = (np.rint(moved @ np.linalg.inv(box)) * pbc).astype(np.int64)
            moved -= images @ box
        farthest = math.sqrt(np.square(moved).sum(1).max())
        return images if radius - 2 * farthest >= self.cutoff else None


def check_skin(skin: float) -> None:
    """Raise a ValueError for an invalid skin."""
    if not 0 <= skin < math.inf:
        raise ValueError(f"skin is {skin!r}; it must be a length in Å, or 0 for no skin.")

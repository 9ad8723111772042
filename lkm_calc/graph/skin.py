"""Verlet's neighbour lists, kept from step to step, with the pairs told apart at every one."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .neighbours import Candidates, EdgeList, candidates


class Searched(NamedTuple):
    """A structure for which candidates were searched, and what was found."""

    candidates: Candidates
    points: NDArray[np.float64]
    box: NDArray[np.float64]
    pbc: NDArray[np.bool_]


class VerletList:
    """The neighbour list of one structure after another, searched anew only as atoms move.

    All pairs within ``cutoff + skin`` are kept as candidates, and those within the cutoff taken
    from them at every call: the edges are those of a new search, in the same order.

    A pair that was farther apart than ``cutoff + skin`` is now farther than
    (cutoff + skin) · s − 2 u, where s is the least stretch of the cell in any direction since (1 if
    it is the same), and u the largest displacement of an atom besides that stretch, through the
    nearest image. The candidates serve while this is no less than the cutoff.

    Args:
        cutoff: Largest cutoff in Å that will be asked for.
        skin: In Å: atoms may move half of it before the next search.

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
        """Return every pair no farther apart than ``cutoff``, as :func:`neighbour_list` does.

        Raises:
            ValueError: As there, or the cutoff exceeds that of the list.
        """
        if cutoff > self.cutoff:
            raise ValueError(f"The cutoff of {cutoff:g} Å exceeds the list's, {self.cutoff:g} Å.")
        images = self._images_passed(points, box, pbc)
        if self._searched is None or images is None:
            found = candidates(points, self.cutoff, box, pbc, self.skin)
            self._searched = Searched(found, points.copy(), box.copy(), pbc.copy())
            return found.within(cutoff, points, box)
        found = self._searched.candidates
        if images.any():
            # The order stays: all images of one pair are moved alike.
            source, target = found.edge_index
            found = found._replace(shifts=found.shifts + images[source] - images[target])
        return found.within(cutoff, points, box)

    def _images_passed(
        self, points: NDArray[np.float64], box: NDArray[np.float64], pbc: NDArray[np.bool_]
    ) -> NDArray[np.int64] | None:
        """Return the whole cells by which each atom was moved since the search, (atoms, 3).

        None if the candidates may lack a pair.
        """
        old = self._searched
        if old is None or old.points.shape != points.shape or not np.array_equal(old.pbc, pbc):
            return None
        start, radius = old.points, self.cutoff + self.skin
        if pbc.any() and not np.array_equal(old.box, box):
            deformation = np.linalg.solve(old.box, box)
            start = start @ deformation
            radius *= float(np.linalg.norm(deformation, -2))  # the least singular value
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
    """Raise a ValueError if a skin is not a length."""
    if not 0 <= skin < math.inf:
        raise ValueError(f"skin is {skin!r}; it must be a length in Å, or 0 for none.")

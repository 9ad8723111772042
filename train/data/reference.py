"""Reference energies of the elements, fitted to the total energies of a training set."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .frames import Frames


class ReferenceFit(NamedTuple):
    """The least-squares fit of energies by compositions."""

    elements: list[int]
    """Atomic numbers."""
    energies: list[float]
    """eV each, in the order of the elements."""
    rank: int
    """Of the compositions; below the number of elements the energies are not unique, which does
    not matter to the sums over compositions of the set."""
    residuals: NDArray[np.float64]
    """(frames) what the fit leaves of each energy, eV."""

    def __str__(self) -> str:
        """Describe the fit in a line."""
        rms = float(np.sqrt(np.mean(self.residuals**2)))
        return (
            f"reference energies of {len(self.elements)} elements by least squares: rank "
            f"{self.rank}, residual {rms:.4g} eV rms"
        )


def fit_reference_energies(frames: Frames) -> ReferenceFit:
    """Fit one energy an element to the total energies, by least squares in float64.

    The solution of smallest norm: with one composition only, it gives the mean energy exactly,
    shared among the elements in proportion to their counts.
    """
    elements, column = np.unique(frames.numbers, return_inverse=True)
    counts = np.zeros((len(frames), len(elements)))
    np.add.at(counts, (frames.atom_frame, column), 1)
    solution, _, rank, _ = np.linalg.lstsq(counts, frames.energies, rcond=None)
    residuals = frames.energies - counts @ solution
    return ReferenceFit(elements.tolist(), solution.tolist(), int(rank), residuals)

"""Reference energies of the elements, fitted to total energies."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lkm_calc.nn import MAX_NUMBER

from .frames import Frames
from .free_atoms import FREE_ATOMS

MAX_BINDING = 12.0
"""Upper bound of the binding energy in eV per atom; that of tungsten, the most strongly bound
element, is 8.9."""
OWN, FORMER = "the isolated atoms", "before"
"""Names of energies that are not from a table."""


class ReferenceFit(NamedTuple):
    """The least-squares fit of energies by compositions."""

    elements: list[int]
    """Atomic numbers."""
    energies: list[float]
    """eV each, in the order of the elements."""
    rank: int
    """Rank of the compositions; below the number of elements the energies are not unique, but their
    sums over compositions in the set are."""
    residuals: NDArray[np.float64]
    """(frames) residual of each energy in eV."""
    level: str = ""
    """The free-atom energies used where the fit is not unique."""

    def __str__(self) -> str:
        """Return a one-line description of the fit."""
        rms = float(np.sqrt(np.mean(self.residuals**2)))
        text = (
            f"reference energies of {len(self.elements)} elements by least squares: rank "
            f"{self.rank}, residual {rms:.4g} eV RMS"
        )
        if self.rank == len(self.elements):
            return text
        return f"{text}; not unique, chosen close to {self.level}"


class Start(NamedTuple):
    """Initial guess of the energies of the elements."""

    energies: NDArray[np.float64]
    """(elements) in eV, including the same binding energy for all."""
    level: str
    """Origin of the free-atom energies."""


def fit_reference_energies(
    frames: Frames,
    own: Mapping[int, float] = MappingProxyType({}),
    former: Mapping[int, float] = MappingProxyType({}),
) -> ReferenceFit:
    """Fit one energy per element to the total energies, by least squares in float64.

    If the compositions do not determine all energies, the solution closest to free-atom energies
    plus one constant binding energy per atom is used, with the table of :data:`FREE_ATOMS` that is
    closest to the energies of the structures. For a single composition the fit reproduces the mean
    energy exactly.

    Args:
        frames: Structures and energies, without isolated atoms.
        own: Known energies of free atoms in eV, by atomic number; they take precedence over tables.
        former: Existing energies of the elements, used as a further candidate.
    """
    elements, column = np.unique(frames.numbers, return_inverse=True)
    counts = np.zeros((len(frames), len(elements)))
    np.add.at(counts, (frames.atom_frame, column), 1)
    tables = dict(_free_atoms(elements, own, frames.energy_unit))
    if set(elements.tolist()) <= set(former):
        tables[FORMER] = np.array([former[z] for z in elements.tolist()])
    start = _nearest(counts, frames.energies, tables)
    left = frames.energies - counts @ start.energies
    correction, _, rank, _ = np.linalg.lstsq(counts, left, rcond=None)
    energies = start.energies + correction
    residuals = frames.energies - counts @ energies
    return ReferenceFit(elements.tolist(), energies.tolist(), int(rank), residuals, start.level)


def _free_atoms(
    elements: NDArray[np.int64], own: Mapping[int, float], energy_unit: str
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield names and energies (elements) of all free-atom tables that contain the elements.

    For properties other than energies in eV only zeros, which are also a candidate for energies
    relative to free atoms.
    """
    known = np.array([own.get(z, np.nan) for z in elements.tolist()])
    if np.isfinite(known).all():
        yield OWN, known
        return
    zeros = (0.0,) * MAX_NUMBER
    tables = FREE_ATOMS if energy_unit == "eV" else {}
    for name, table in (*tables.items(), ("energies counted from free atoms", zeros)):
        values = np.where(np.isfinite(known), known, np.array(table)[elements - 1])
        if np.isfinite(values).all():
            yield name, values


def _nearest(
    counts: NDArray[np.float64],
    energies: NDArray[np.float64],
    tables: Mapping[str, NDArray[np.float64]],
) -> Start:
    """Return the free-atom energies closest to the structures, shifted by the mean binding energy.

    If the binding energy is implausible for all tables, one of them is scaled.
    """
    sizes = counts.sum(1)

    def binding(table: NDArray[np.float64]) -> float:
        return float(sizes @ (energies - counts @ table) / (sizes @ sizes))

    def factor(table: NDArray[np.float64]) -> float:
        sums = counts @ table
        return float(sums @ energies / max(float(sums @ sums), 1e-300))

    level = min(tables, key=lambda name: abs(binding(tables[name])))
    scales = {name: factor(table) for name, table in tables.items()}
    scales = {name: scale for name, scale in scales.items() if scale > 0}
    if abs(binding(tables[level])) <= MAX_BINDING or not scales:
        return Start(tables[level] + binding(tables[level]), level)
    level = min(scales, key=lambda name: abs(np.log(scales[name])))
    return Start(scales[level] * tables[level], f"{level} times {scales[level]:.3g}")

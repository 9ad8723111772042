"""Reference energies of the elements, fitted to the total energies of a training set."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lkm_calc.nn import MAX_NUMBER

from .frames import Frames
from .free_atoms import FREE_ATOMS

MAX_BINDING = 12.0
"""Energy in eV per atom within which structures lie from their free atoms; that of tungsten, the
most strongly bound element, is 8.9."""
OWN, FORMER = "the isolated atoms", "before"
"""Names of energies that are not from a table."""


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
    level: str = ""
    """The free atoms from which energies that are not unique deviate least."""

    def __str__(self) -> str:
        """Describe the fit in a line."""
        rms = float(np.sqrt(np.mean(self.residuals**2)))
        text = (
            f"reference energies of {len(self.elements)} elements by least squares: rank "
            f"{self.rank}, residual {rms:.4g} eV rms"
        )
        return text if self.rank == len(self.elements) else f"{text}; otherwise like {self.level}"


class Start(NamedTuple):
    """Energies that those of the elements shall be near."""

    energies: NDArray[np.float64]
    """(elements) eV each, the same binding energy added to all."""
    level: str
    """Whose atoms they are."""


def fit_reference_energies(
    frames: Frames,
    own: Mapping[int, float] = MappingProxyType({}),
    former: Mapping[int, float] = MappingProxyType({}),
) -> ReferenceFit:
    """Fit one energy an element to the total energies, by least squares in float64.

    Where compositions leave energies undetermined, the fit is the one nearest to free atoms that
    are all bound by the same energy: those of the method, of :data:`FREE_ATOMS`, whose energies lie
    nearest to the structures'. With one composition only, it gives the mean energy exactly, and the
    energy of binding is shared equally by the atoms.

    Args:
        frames: Structures and energies, isolated atoms left out.
        own: Energies of free atoms that are known, in eV by atomic number; they go before tables.
        former: Energies of the elements that may be right already.
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
    """Yield names and energies (elements) of free atoms by every method that has all of them.

    Of properties that are no energy in eV only zeros, which also stand for energies that codes
    count from free atoms.
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
    """Return the free atoms nearest to the energies of structures, each bound as they are in all.

    If none are as near as a binding energy can be, those of a table are scaled.
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

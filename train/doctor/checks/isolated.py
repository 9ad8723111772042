"""Isolated atoms, and the binding energy of other structures relative to them."""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from ...data import MAX_DIFFERENCE, Frames
from .compositions import element_counts
from .findings import Finding, Ints, indices, name_frames

BINDING_RANGE = (-0.5, 12.0)
"""Plausible mean binding energy in eV per atom; bulk tungsten has 8.9, argon 0.08."""


class IsolatedFigures(NamedTuple):
    """Energies of the isolated atoms in a file."""

    energies: dict[str, float]
    """Mean energy in eV, by element symbol."""
    n_frames: int
    binding: float
    """Mean binding energy of structures of these elements in eV per atom; NaN if there are none."""


def measure_isolated(frames: Frames, usable: Ints) -> tuple[IsolatedFigures, list[Finding]]:
    """Return the energies of isolated atoms, if any, and findings."""
    alone = np.flatnonzero(frames.isolated)
    numbers, labels = frames.numbers[frames.starts[alone]], frames.energies[alone]
    energies, findings = {}, []
    for number in np.unique(numbers).tolist():
        own = numbers == number
        energies[chemical_symbols[number]] = float(labels[own].mean())
        if np.ptp(labels[own]) > MAX_DIFFERENCE:
            symbol, where = chemical_symbols[number], name_frames(usable[alone[own]])
            message = (
                f"energies of {symbol} ({where}) differ by {np.ptp(labels[own]):.4g} eV. Keep the "
                "one in its ground state."
            )
            where_found = indices(usable[alone[own]])
            findings.append(Finding("fault", "isolated atoms", message, where_found))
    binding = _binding(frames, energies)
    if len(alone) == len(frames):
        message = "there are no other frames. Add structures of two atoms or more."
        findings.append(Finding("note", "isolated atoms", message))
    elif not np.isnan(binding) and not BINDING_RANGE[0] <= binding <= BINDING_RANGE[1]:
        message = (
            f"the binding energy of other frames relative to them is {binding:.3g} eV per atom "
            f"(plausible: {BINDING_RANGE[0]:g} to {BINDING_RANGE[1]:g}). They were computed with "
            "a different method or are in a different unit; compute them like the other frames."
        )
        findings.append(Finding("fault", "isolated atoms", message))
    return IsolatedFigures(energies, len(alone), binding), findings


def _binding(frames: Frames, energies: dict[str, float]) -> float:
    """Return the mean binding energy per atom of frames with known atomic energies, or NaN."""
    elements, counts = element_counts(frames)
    atoms = np.array([energies.get(chemical_symbols[z], np.nan) for z in elements])
    counts, labels = counts[~frames.isolated], frames.energies[~frames.isolated]
    sums = np.where(counts > 0, counts * atoms, 0).sum(1)
    per_atom = (sums - labels) / counts.sum(1)
    return float(np.nanmean(per_atom)) if np.isfinite(per_atom).any() else np.nan

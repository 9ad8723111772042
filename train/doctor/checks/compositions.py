"""Chemical compositions of frames."""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from ...data import Frames
from .findings import Floats, Ints


class Composition(NamedTuple):
    """Frames with one chemical formula."""

    formula: str
    n_frames: int
    mean_energy: float
    """eV"""
    spread: float
    """Standard deviation of the energy, eV."""


def element_counts(frames: Frames) -> tuple[Ints, Floats]:
    """Return the elements and the number of atoms of each per frame, (frames, elements)."""
    elements, which = np.unique(frames.numbers, return_inverse=True)
    flat = np.bincount(
        frames.atom_frame * len(elements) + which, minlength=len(frames) * len(elements)
    )
    return elements, flat.reshape(len(frames), -1).astype(np.float64)


def kinds_of(frames: Frames) -> Ints:
    """Return an index of the composition of each frame."""
    kinds: Ints = np.unique(element_counts(frames)[1], axis=0, return_inverse=True)[1].ravel()
    return kinds


def list_compositions(frames: Frames) -> list[Composition]:
    """Return the compositions, the most frequent first."""
    elements, counts = element_counts(frames)
    which = kinds_of(frames)
    compositions = []
    for k in range(which.max() + 1):
        own = which == k
        e, row = frames.energies[own], counts[own.argmax()]
        formula = Formula.from_dict(
            {chemical_symbols[z]: int(n) for z, n in zip(elements, row, strict=True) if n}
        ).format("hill")
        compositions.append(Composition(formula, len(e), float(e.mean()), float(e.std())))
    return sorted(compositions, key=lambda c: -c.n_frames)

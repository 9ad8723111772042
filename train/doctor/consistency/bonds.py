"""The stiffness of C–H bonds, which hardly depends on molecule or method."""

from typing import NamedTuple

import numpy as np

from ...data import Frames, edges_of
from ..checks import Floats

MAX_BOND_FRAMES = 500
"""Frames in which bonds are sought, spread evenly over the file."""
REACH = 3.0
"""Distance in Å within which a hydrogen's nearest neighbour lies, also if positions are in Bohr."""
WINDOW = 0.1
"""Share of the median length by which bonds may differ from it; others are breaking."""
MIN_SPREAD = 0.01
"""Least share of it by which lengths must vary: those of bonds held rigid differ by 0.005."""
MIN_BONDS = 50
MIN_CORRELATION = 0.8
"""Least correlation of force and length; genuine sets have 0.95 to 0.99. It is low where all
structures are relaxed or where forces belong to others."""


class BondTest(NamedTuple):
    """The force on hydrogen along its bond to carbon, beside the length of the bond."""

    stiffness: float
    """Absolute slope in eV/Å², in which labels of the energy have no part."""
    correlation: float
    """Positive where forces restore the bond, negative where they are the gradient."""
    n_bonds: int


def compare_bonds(frames: Frames) -> BondTest | None:
    """Regress the force on hydrogen along its bond to carbon on the length of the bond.

    Any composition and size of molecules will do, and no two frames need be alike.

    Returns:
        None where there are too few bonds, or their forces do not follow their lengths.
    """
    if frames.forces is None:
        return None
    step = -(-len(frames) // MAX_BOND_FRAMES)
    parts = [_bonds(frames, frames.forces, f) for f in range(0, len(frames), max(1, step))]
    lengths, forces = np.concatenate(parts, axis=1) if parts else np.empty((2, 0))
    if len(lengths) < MIN_BONDS:
        return None
    usual = np.abs(lengths / np.median(lengths) - 1) < WINDOW
    length, force = lengths[usual], forces[usual]
    if len(length) < MIN_BONDS or length.std() < MIN_SPREAD * length.mean() or not force.any():
        return None
    correlation = -float(np.corrcoef(length, force)[0, 1])
    if abs(correlation) < MIN_CORRELATION:
        return None
    slope = abs(correlation) * float(force.std() / length.std())
    return BondTest(slope, correlation, len(length))


def _bonds(frames: Frames, forces: Floats, f: int) -> Floats:
    """Return lengths of C–H bonds, and the force that lengthens them, (2, bonds).

    A hydrogen is bonded to the atom nearest to it.
    """
    rows = slice(frames.starts[f], frames.starts[f + 1])
    numbers = frames.numbers[rows]
    edges, vectors = edges_of(frames, f, REACH)
    source, target = edges.edge_index
    hydrogens = np.flatnonzero(numbers[target] == 1)
    lengths = np.linalg.norm(vectors[hydrogens], axis=1)
    order = np.lexsort((lengths, target[hydrogens]))
    _, first = np.unique(target[hydrogens][order], return_index=True)
    chosen = order[first]
    chosen = chosen[numbers[source[hydrogens[chosen]]] == 6]
    edge, length = hydrogens[chosen], lengths[chosen]
    along = (forces[rows][target[edge]] * vectors[edge]).sum(1) / np.maximum(length, 1e-6)
    return np.stack([length, along])

"""Force constant of C–H bonds, which hardly depends on the molecule or the method."""

from typing import NamedTuple

import numpy as np

from ...data import Frames, edges_of
from ..checks import Floats

MAX_BOND_FRAMES = 500
"""Number of frames used, evenly spaced in the file."""
REACH = 3.0
"""Search radius in Å for the nearest neighbour of a hydrogen, sufficient also in Bohr."""
WINDOW = 0.1
"""Maximum relative deviation of a bond from the median length; longer bonds are breaking."""
MIN_SPREAD = 0.01
"""Minimum relative spread of the lengths; that of constrained bonds is 0.005."""
MIN_BONDS = 50
MIN_CORRELATION = 0.8
"""Minimum correlation of force and length; correct sets have 0.95 to 0.99. It is low for relaxed
structures and for misassigned forces."""


class BondTest(NamedTuple):
    """Regression of the force on hydrogen along its bond to carbon on the bond length."""

    stiffness: float
    """Absolute slope in eV/Å², independent of energy labels."""
    correlation: float
    """Positive for restoring forces, negative for gradients."""
    n_bonds: int


def compare_bonds(frames: Frames) -> BondTest | None:
    """Regress the force on hydrogen along its bond to carbon on the length of the bond.

    It works for any mixture of molecules and does not need similar frames.

    Returns:
        None if there are too few bonds, or force and length are not correlated.
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
    """Return lengths of C–H bonds and the force that stretches them, (2, bonds).

    Each hydrogen is assumed to be bonded to its nearest neighbour.
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

"""Comparison of energy differences of similar frames with the work of the forces."""

from typing import NamedTuple

import numpy as np

from ...data import Frames
from ..checks import Floats, Ints, nonzero, through_zero
from .similar import MIN_DISPLACEMENT, groups_of, nearest, superpose

NEIGHBOURS = 3
"""Number of nearest frames compared with each frame."""
MAX_DISPLACEMENT = 0.6
"""Largest displacement of an atom in Å between compared frames. In the closest quarter of the pairs
of the largest rMD17 molecules, 1000 frames each, it is up to 0.57 Å."""
MIN_PAIRS = 25
"""Minimum number of pairs; 25 unrelated pairs have a correlation of about 0.2."""
MIN_CORRELATION = 0.5
"""Minimum correlation of ΔE with the work of the forces. The closest quarter of the pairs gives
0.93 to 1.00 in all rMD17 files; labels of other frames up to 0.10."""
FULL_CORRELATION = 0.8
"""Correlation below which some of the labels are wrong: 20 % shuffled energies of aspirin gave
0.71, 10 % gave 0.90."""


class PairTest(NamedTuple):
    """Energy differences of similar frames and the work of the forces between them."""

    differences: Floats
    """(pairs) ΔE in eV."""
    work: Floats
    """(pairs) −½(F_a + F_b)·ΔR in eV, after the rigid motion is removed."""
    displacement: float
    """Median over the pairs of the largest displacement of an atom, Å."""
    slope: float
    """Least-squares slope of ΔE against the work; 1 if forces are minus the gradient."""
    correlation: float
    """Correlation of the two about zero."""
    stiffness: float
    """Σ|ΔF|² / −Σ ΔF·ΔR, a mean force constant in eV/Å², independent of energy labels."""


def compare_pairs(frames: Frames) -> PairTest | None:
    """Compare ΔE with the work of the mean force for the most similar pairs of frames.

    The work of the mean force is exact in a harmonic potential, for any displacement. Only frames
    with the same sequence of atoms are paired; they are superposed (Kabsch 1976), and periodic
    frames are excluded because they cannot be rotated.

    Returns:
        None if fewer than MIN_PAIRS pairs are similar enough.
    """
    if frames.forces is None:
        return None
    parts = [_pairs_of_group(frames, frames.forces, group) for group in groups_of(frames)]
    if not parts:
        return None
    difference, work, displacement, change, projection = np.concatenate(parts, axis=1)
    order = np.argsort(displacement)
    order = order[displacement[order] > MIN_DISPLACEMENT]
    order = order[: max(MIN_PAIRS, len(order) // 4)]
    order = order[displacement[order] < MAX_DISPLACEMENT]
    if len(order) < MIN_PAIRS:
        return None
    x, y = work[order], difference[order]
    slope, correlation = through_zero(x, y)
    stiffness = float(change[order].sum() / nonzero(-projection[order].sum()))
    return PairTest(y, x, float(np.median(displacement[order])), slope, correlation, stiffness)


def _pairs_of_group(frames: Frames, forces: Floats, group: Ints) -> Floats:
    """Return ΔE, work, largest displacement, |ΔF|² and ΔF·ΔR of near frames, (5, pairs)."""
    rows = frames.starts[group][:, None] + np.arange(frames.sizes[group[0]])
    positions, force = frames.positions[rows], forces[rows]
    positions = positions - positions.mean(1, keepdims=True)
    first, second = nearest(positions, NEIGHBOURS)
    rotation = superpose(positions[second], positions[first])
    moved = positions[second] @ rotation - positions[first]
    turned = force[second] @ rotation
    change = turned - force[first]
    return np.stack(
        [
            frames.energies[group][second] - frames.energies[group][first],
            -0.5 * ((turned + force[first]) * moved).sum((1, 2)),
            np.linalg.norm(moved, axis=-1).max(1),
            (change**2).sum((1, 2)),
            (change * moved).sum((1, 2)),
        ]
    )

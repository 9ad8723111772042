"""Smooth switching between the energies of isolated and of bonded atoms.

A training set may contain the energies of isolated atoms. The energy of a bonded atom is that of
the isolated atom, plus a mean binding energy of its element, a few eV, plus the output of the
network. Neither the binding energy nor the output of the network is meaningful for an atom without
neighbours, so both are subtracted with a weight that is 1 without neighbours and decreases smoothly
to 0 before a bond is formed.
"""

from jaxtyping import Float, Int
from torch import Tensor

from ..graph import sum_to

NEAR = 0.5
"""Fraction of the cut-off within which a single neighbour makes an atom bonded."""


def isolation(
    lengths: Float[Tensor, " edges"], target: Int[Tensor, " edges"], atoms: int, cutoff: float
) -> Float[Tensor, " atoms"]:
    """Return the weight with which each atom is isolated: w_i = max(0, 1 − n_i)³.

    n_i = Σ_j ((1 − r_ij / r_c) / (1 − 0.5))³ counts neighbours: one within half the cut-off r_c
    counts as 1 or more, one at r_c as 0. The weight is twice differentiable. With a neighbour
    within half the cut-off, or several farther away, the weight and both derivatives are 0.

    Args:
        lengths: Lengths of the edges in Å.
        target: Index of the target atom of each edge.
        atoms: Number of atoms.
        cutoff: r_c in Å.
    """
    near = ((1 - lengths / cutoff) / (1 - NEAR)).clamp(min=0)
    neighbours: Tensor = sum_to(near**3, target, atoms)
    return (1 - neighbours).clamp(min=0) ** 3

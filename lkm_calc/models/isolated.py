"""Smooth switching between the energies of isolated and of bonded atoms.

A training set may say what an isolated atom of an element has for an energy. A bonded atom has that
and its share of the binding, which is a few eV and mostly the same for all; what a network writes
is what is left. For an atom without neighbours neither the share nor what the network happens to
write means anything, so both are taken off, by a weight that is 1 without neighbours and falls
smoothly to 0 before any bond is formed.
"""

from jaxtyping import Float, Int
from torch import Tensor

from ..graph import sum_to

NEAR = 0.5
"""Share of the cut-off within which one neighbour makes an atom a bonded one."""


def isolation(
    lengths: Float[Tensor, " edges"], target: Int[Tensor, " edges"], atoms: int, cutoff: float
) -> Float[Tensor, " atoms"]:
    """Return the weight of the isolated atom in each: w_i = max(0, 1 − n_i)³.

    n_i = Σ_j ((1 − r_ij / r_c) / (1 − 0.5))³ counts neighbours, each as 1 or more within half the
    cut-off r_c and as 0 at r_c. The weight is twice differentiable; with a neighbour within half
    the cut-off, or several farther away, it is 0 and so are both derivatives.

    Args:
        lengths: Of the edges, in Å.
        target: The atom that each edge points to.
        atoms: Their number.
        cutoff: r_c in Å.
    """
    near = ((1 - lengths / cutoff) / (1 - NEAR)).clamp(min=0)
    neighbours: Tensor = sum_to(near**3, target, atoms)
    return (1 - neighbours).clamp(min=0) ** 3

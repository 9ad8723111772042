"""Distances and directions of edge vectors, and Legendre polynomials of angles."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def lengths_and_directions(
    vectors: Float[Tensor, "edges 3"],
) -> tuple[Float[Tensor, " edges"], Float[Tensor, "edges 3"]]:
    """Return the length (Å) and the unit vector of each edge.

    Edges connect different atoms or different periodic images, so no vector has length zero.
    """
    lengths = vectors.square().sum(-1).sqrt()
    return lengths, vectors / lengths.unsqueeze(-1)


def legendre(
    cosines: Float[Tensor, "... pairs"], count: int, dim: int = -1
) -> Float[Tensor, "..."]:
    """Return the zonal harmonics Y_l0 = √((2l+1)/4π) P_l(cos α), l = 0 .. count-1, along ``dim``.

    They are polynomials in the cosine, with finite derivatives for collinear edges, where the angle
    itself is not differentiable. Recurrence: (l+1) P_(l+1) = (2l+1) x P_l − l P_(l−1) (DLMF
    14.10.3).
    """
    norms = [math.sqrt((2 * l + 1) / (4 * math.pi)) for l in range(count)]
    functions = [torch.full_like(cosines, norms[0]), math.sqrt(3 / (4 * math.pi)) * cosines]
    for l in range(1, count - 1):
        rising = (2 * l + 1) / (l + 1) * norms[l + 1] / norms[l]
        falling = l / (l + 1) * norms[l + 1] / norms[l - 1]
        above = (rising * cosines) * functions[l] - falling * functions[l - 1]
        functions.append(above)
    return torch.stack(functions[:count], dim=dim)

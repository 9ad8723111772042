"""Distances, directions and real spherical harmonics of edge vectors."""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor


def lengths_and_directions(
    vectors: Float[Tensor, "edges 3"],
) -> tuple[Float[Tensor, " edges"], Float[Tensor, "edges 3"]]:
    """Return the length (Å) and the unit vector of each edge.

    Edges join different atoms or different periodic images, so no vector has length zero.
    """
    lengths = vectors.square().sum(-1).sqrt()
    return lengths, vectors / lengths.unsqueeze(-1)


@cache
def _harmonic_norms(degree: int) -> tuple[float, ...]:
    """Return the factors of Y_l0 and of the pairs Y_l,±m, m = 1..l, without the sin^m part."""
    norms = []
    for m in range(degree + 1):
        ratio = math.factorial(degree - m) / math.factorial(degree + m)
        norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * ratio)
        norms.append(norm if m == 0 else math.sqrt(2) * norm)
    return tuple(norms)


def spherical_harmonics(
    directions: Float[Tensor, "edges 3"], max_degree: int
) -> list[Float[Tensor, "edges orders"]]:
    """Return the real spherical harmonics Y_lm of unit vectors, one tensor (edges, 2l+1) a degree.

    They are polynomials in x, y, z and therefore smooth everywhere, the poles included. Within a
    degree the columns are m = 0..l (cosines) and then m = 1..l (sines). Normalised so that
    ``sum_m Y_lm(a) Y_lm(b) = (2l + 1) / (4 pi) P_l(a · b)``, the addition theorem.

    With Q_l^m = P_l^m / sin^m, the recurrences in l at fixed m are those of the associated
    Legendre functions without the Condon–Shortley phase (DLMF 14.10.3, 14.7.15).
    """
    x, y, z = directions.unsqueeze(1).unbind(-1)  # (edges, 1) each
    legendre = [torch.ones_like(z)]  # Q_l^m for m = 0..l, one tensor (edges, l+1) a degree
    cosines, sines = [torch.ones_like(z)], [torch.zeros_like(z)]  # sin^m θ · cos mφ, sin mφ
    harmonics = []
    for degree in range(max_degree + 1):
        if degree > 0:
            previous = legendre[-1]
            m = torch.arange(degree, dtype=z.dtype, device=z.device)
            lower = (2 * degree - 1) * z * previous
            if degree > 1:
                before = torch.nn.functional.pad(legendre[-2], (0, 1))
                lower = lower - (degree + m - 1) * before
            # Q_l^l = (2l-1)!! is a constant column.
            top = torch.full_like(z, math.prod(range(1, 2 * degree, 2)))
            legendre.append(torch.cat([lower / (degree - m), top], dim=1))
            c, s = cosines[-1], sines[-1]
            cosines.append(x * c - y * s)
            sines.append(x * s + y * c)
        norms = torch.tensor(_harmonic_norms(degree), dtype=z.dtype, device=z.device)
        q = legendre[degree] * norms
        columns = [q * torch.cat(cosines, dim=1)]
        if degree > 0:
            columns.append(q[:, 1:] * torch.cat(sines[1:], dim=1))
        harmonics.append(torch.cat(columns, dim=1))
    return harmonics


def legendre(cosines: Float[Tensor, " pairs"], count: int) -> Float[Tensor, "pairs degrees"]:
    """Return the zonal harmonics Y_l0 = √((2l+1)/4π) P_l(cos α), l = 0 .. count-1.

    Polynomials in the cosine, with finite derivatives at collinear edges, where the angle itself
    has none. Recurrence (l+1) P_(l+1) = (2l+1) x P_l − l P_(l−1) (DLMF 14.10.3).
    """
    polynomials = [torch.ones_like(cosines), cosines]
    for l in range(1, count - 1):
        above = ((2 * l + 1) * cosines * polynomials[l] - l * polynomials[l - 1]) / (l + 1)
        polynomials.append(above)
    norms = [math.sqrt((2 * l + 1) / (4 * math.pi)) for l in range(count)]
    return torch.stack(polynomials[:count], dim=1) * cosines.new_tensor(norms)

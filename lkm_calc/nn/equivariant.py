"""Spherical tensors on atoms: linear maps, symmetric products and their coupling coefficients.

A tensor feature has the shape (components, atoms, channels). Its (L+1)² components are those of
real spherical harmonics, degree after degree, in the order of :class:`SphericalHarmonics`, in
component normalisation, Σ_m Y_lm² = 2l+1. All products conserve parity: only paths with even
l₁ + l₂ + l₃ occur.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from .basis import SphericalHarmonics
from .layers import Constants, dense


def degree_slice(l: int) -> slice:
    """Return the slice of the components of degree l."""
    return slice(l * l, (l + 1) ** 2)


class FlatHarmonics(SphericalHarmonics):
    """Y_lm of unit vectors in component normalisation, one column per component."""

    columns: Tensor

    def __init__(self, max_ell: int) -> None:
        super().__init__(max_ell)
        kept = [l * self.width + m for l in range(max_ell + 1) for m in range(2 * l + 1)]
        self.register_buffer("columns", torch.tensor(kept), persistent=False)

    def forward(self, directions: Float[Tensor, "edges 3"]) -> Float[Tensor, "edges components"]:
        """Return the harmonics of each direction."""
        padded = super().forward(directions).flatten(1)
        return math.sqrt(4 * math.pi) * padded.index_select(1, self.columns)


class Path(NamedTuple):
    """Degrees of two tensors coupled to a third."""

    l1: int
    l2: int
    l3: int


@cache
def gaunt_coefficients(l1: int, l2: int, l3: int) -> NDArray[np.float64]:
    """Return ∫ Y_l1 Y_l2 Y_l3, (2l1+1, 2l2+1, 2l3+1), scaled to unit variance.

    If the components of the inputs are independent with unit variance, those of the product have
    unit variance on average. Computed exactly by Gauss–Legendre and trapezoidal quadrature.
    """
    count = l1 + l2 + l3 + 2
    z, weights = np.polynomial.legendre.leggauss(count)
    phi = np.arange(2 * count) * math.pi / count
    ring = np.sqrt(1 - z**2)
    points = np.stack(
        [
            np.outer(ring, np.cos(phi)),
            np.outer(ring, np.sin(phi)),
            np.outer(z, np.ones_like(phi)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    weights = np.repeat(weights, 2 * count) / (4 * count)
    harmonics = FlatHarmonics(max(l1, l2, l3)).double()(torch.from_numpy(points)).numpy()
    parts = [harmonics[:, degree_slice(l)] for l in (l1, l2, l3)]
    found = np.einsum("q,qa,qb,qc->abc", weights, *parts)
    found[np.abs(found) < 1e-12] = 0.0
    scaled: NDArray[np.float64] = found / np.sqrt((found**2).sum() / (2 * l3 + 1))
    return scaled


def coupling_paths(max_ell: int, max_out: int, symmetric: bool) -> list[Path]:
    """Return the paths from two tensors up to ``max_ell`` to one up to ``max_out``, by l₃.

    Only those that conserve parity; if both tensors are the same, each unordered pair of degrees
    occurs once.
    """
    return [
        Path(l1, l2, l3)
        for l3 in range(max_out + 1)
        for l1 in range(max_ell + 1)
        for l2 in range(l1 if symmetric else 0, max_ell + 1)
        if (l1 + l2 + l3) % 2 == 0 and abs(l1 - l2) <= l3 <= l1 + l2
    ]


class TensorLinear(nn.Module):
    """A linear map of the channels of each degree, without a bias.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        degrees: Degrees that are mapped and returned, ascending without gaps.
    """

    def __init__(self, in_channels: int, out_channels: int, degrees: range) -> None:
        super().__init__()
        self.degrees = degrees
        self.linears = nn.ModuleList(dense(in_channels, out_channels, bias=False) for _ in degrees)

    def forward(
        self, x: Float[Tensor, "components atoms channels"]
    ) -> Float[Tensor, "mapped atoms out"]:
        """Return the mapped components of ``degrees``; ``x`` starts with degree 0."""
        parts = [
            linear(x[degree_slice(l)]) for l, linear in zip(self.degrees, self.linears, strict=True)
        ]
        return torch.cat(parts)


class TensorProduct(Constants):
    """All paths of a ⊗ b, channel by channel, followed by a linear map over paths and channels.

    out_l3 = W_l3 [ (a_l1 ⊗ b_l2)_l3 for all paths ]; with a = b this is the symmetrised B-basis of
    the atomic cluster expansion at correlation 2, applied again at correlation 3 (Batatia et al.
    2022, arXiv:2206.07697, equation 10).

    Args:
        channels: Number of channels of both tensors and of the product.
        max_ell: Largest degree of both tensors.
        max_out: Largest degree of the product.
        symmetric: Whether the two tensors are the same.
    """

    def __init__(self, channels: int, max_ell: int, max_out: int, symmetric: bool) -> None:
        super().__init__()
        self.max_ell, self.max_out, self.symmetric = max_ell, max_out, symmetric
        paths = coupling_paths(max_ell, max_out, symmetric)
        self.outputs: dict[tuple[int, int], list[int]] = {}
        for path in sorted(paths):
            self.outputs.setdefault((path.l1, path.l2), []).append(path.l3)
        for (l1, l2), found in self.outputs.items():
            if l1 and l2:
                columns = np.concatenate([gaunt_coefficients(l1, l2, l3) for l3 in found], axis=2)
                matrix = columns.reshape(-1, columns.shape[2]).T
                self.set_constant(f"gaunt_{l1}{l2}", torch.from_numpy(matrix.copy()))
        counts = [sum(path.l3 == l3 for path in paths) for l3 in range(max_out + 1)]
        self.linears = nn.ModuleList(dense(n * channels, channels, bias=False) for n in counts)

    def forward(
        self,
        a: Float[Tensor, "components atoms channels"],
        b: Float[Tensor, "components atoms channels"],
    ) -> Float[Tensor, "out atoms channels"]:
        """Return the product of two tensors of the same shape."""
        atoms, channels = a.shape[1:]
        found: list[list[Tensor]] = [[] for _ in self.linears]
        for (l1, l2), degrees in self.outputs.items():
            x, y = a[degree_slice(l1)], b[degree_slice(l2)]
            if l1 == 0 or l2 == 0:  # multiplication by a scalar
                found[degrees[0]].append(x * y)
                continue
            outer = (x.unsqueeze(1) * y.unsqueeze(0)).reshape(-1, atoms * channels)
            coupled = (getattr(self, f"gaunt_{l1}{l2}") @ outer).view(-1, atoms, channels)
            for l3, part in zip(
                degrees, coupled.split([2 * l3 + 1 for l3 in degrees]), strict=True
            ):
                found[l3].append(part)
        return torch.cat(
            [
                linear(torch.cat(parts, -1))
                for parts, linear in zip(found, self.linears, strict=True)
            ]
        )


def soft_norm(x: Float[Tensor, "components atoms channels"]) -> Float[Tensor, "..."]:
    """Return x / √(1 + mean square of x) for each atom, which is smooth and bounded."""
    return x * torch.rsqrt(1 + x.square().mean((0, 2), keepdim=True))

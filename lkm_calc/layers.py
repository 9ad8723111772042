"""Blocks that several architectures share."""

import math

import torch
from torch import Tensor, nn


def glorot_orthogonal_(weight: Tensor, scale: float = 2.0) -> None:
    """Fill a matrix with a random semi-orthogonal one of variance scale / (fan_in + fan_out).

    The initialisation of DimeNet (arXiv:2003.03123, appendix B).
    """
    with torch.no_grad():
        nn.init.orthogonal_(weight)
        fan_out, fan_in = weight.shape
        if weight.numel() > 1:  # one element has no variance
            weight.mul_(math.sqrt(scale / ((fan_in + fan_out) * weight.var().item())))


def dense(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """Return a linear layer with a glorot-orthogonal weight and a zero bias."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    glorot_orthogonal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """Two dense layers with SiLU and a skip connection: x + σ(W₂ σ(W₁ x))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = dense(features, features)
        self.second = dense(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the shape of ``x``."""
        silu = nn.functional.silu
        return x + silu(self.second(silu(self.first(x))))


def sum_to(rows: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum rows (n, ...) that share an index (n) into a new tensor (size, ...)."""
    return rows.new_zeros(size, *rows.shape[1:]).index_add(0, index, rows)

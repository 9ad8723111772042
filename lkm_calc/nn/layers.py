"""Layers shared by several architectures."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

MAX_NUMBER = 94
"""Atomic number of the heaviest element with an embedding (plutonium)."""


def glorot_orthogonal_(weight: Tensor, scale: float = 2.0) -> None:
    """Initialise a matrix as random semi-orthogonal with variance scale / (fan_in + fan_out).

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


class Constants(nn.Module):
    """A module with non-persistent constants that keep their float64 values.

    Casting the module to float32 and back does not lose digits of the constants.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, Tensor] = {}

    def set_constant(self, name: str, values: Float[Tensor, "..."]) -> None:
        """Register a float64 tensor as a buffer with the dtype of the module."""
        self._exact[name] = values
        self.register_buffer(name, values.to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Constants":
        """Cast the constants from their float64 values."""
        before = {name: getattr(self, name) for name in self._exact}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in self._exact.items():
            now = getattr(self, name)
            if now is not before[name]:  # captured CUDA graphs may read unchanged buffers
                setattr(self, name, values.to(now))
        return self


class Residual(nn.Module):
    """Two dense layers with SiLU and a residual connection: x + σ(W₂ σ(W₁ x))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = dense(features, features)
        self.second = dense(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the shape of ``x``."""
        silu = nn.functional.silu
        return x + silu(self.second(silu(self.first(x))))


class MLP(nn.Sequential):
    """Dense layers of the given widths, each followed by SiLU."""

    def __init__(self, *widths: int) -> None:
        pairs = pairwise(widths)
        super().__init__(*(layer for pair in pairs for layer in (dense(*pair), nn.SiLU())))


class AtomEmbedding(nn.Embedding):
    """A trainable embedding for each element up to :data:`MAX_NUMBER`, by atomic number."""

    def __init__(self, features: int) -> None:
        super().__init__(MAX_NUMBER + 1, features)
        nn.init.uniform_(self.weight, -math.sqrt(3), math.sqrt(3))


class EdgeLinear(nn.Linear):
    """W [h_i ‖ h_j ‖ e_ij] + b for every edge j → i, with e_ij as wide as h.

    The product is split into three, two of which are computed per atom: :meth:`combine` equals
    applying the layer to the concatenation.
    """

    def __init__(self, features: int, out_features: int) -> None:
        super().__init__(3 * features, out_features)

    def of_edges(self, e: Float[Tensor, "edges dim"]) -> Float[Tensor, "edges out"]:
        """Return the part that depends only on the edges, including the bias."""
        return nn.functional.linear(e, self.weight.chunk(3, dim=1)[2], self.bias)

    def combine(
        self,
        h: Float[Tensor, "atoms dim"],
        edge_part: Float[Tensor, "edges out"],
        source: Int[Tensor, " edges"],
        target: Int[Tensor, " edges"],
    ) -> Float[Tensor, "edges out"]:
        """Return the full product, given :meth:`of_edges`."""
        to_target, to_source, _ = self.weight.chunk(3, dim=1)
        at_target = (h @ to_target.T).index_select(0, target)
        at_source = (h @ to_source.T).index_select(0, source)
        return edge_part + at_target + at_source


class Head(nn.Module):
    """Per-atom output y = W MLP[d,d,d,d](h) + b, initialised to zero."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mlp = MLP(features, features, features, features)
        self.value = nn.Linear(features, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(
        self, h: Float[Tensor, "atoms dim"]
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "atoms dim"]]:
        """Return the values and the features of the last hidden layer."""
        features = self.mlp(h)
        return self.value(features).squeeze(-1), features

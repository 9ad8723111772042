"""Optimisers: AdamW, or Muon for weight matrices and AdamW for all other parameters."""

from typing import cast

import torch
from torch import nn

from ..config import OptimiserConfig
from .muon import Muon


def make_optimisers(
    module: nn.Module, config: OptimiserConfig, compiled: bool = True
) -> list[torch.optim.Optimizer]:
    """Return optimisers that together update each parameter of a module once.

    With ``config.kind`` "muon", weight matrices of linear layers are optimised by Muon; embeddings,
    vectors and frequencies, for which a spectral norm is not meaningful, by AdamW. Only these
    matrices decay: zero is no meaningful value of a frequency or of an element's energy. For
    ``compiled`` see :class:`Muon`.
    """
    matrices, rate, decay = _matrices(module), config.learning_rate, config.weight_decay
    found: list[torch.optim.Optimizer] = []
    if config.kind == "muon" and matrices:
        found.append(Muon(matrices, rate, config.momentum, decay=decay, compiled=compiled))
    taken = set(matrices) if found else set()
    rest = [p for p in module.parameters() if p not in taken]
    decaying = set(matrices) if decay else set()
    groups = [
        {"params": [p for p in rest if p not in decaying], "weight_decay": 0.0},
        {"params": [p for p in rest if p in decaying], "weight_decay": decay},
    ]
    if rest:
        fused = rest[0].device.type in ("cpu", "cuda")
        filled = [group for group in groups if group["params"]]
        found.append(torch.optim.AdamW(filled, lr=rate, fused=fused))
    return found


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return unique weights of linear layers with more than one row and column."""
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    return [cast(nn.Parameter, w) for w in dict.fromkeys(weights) if min(w.shape) > 1]

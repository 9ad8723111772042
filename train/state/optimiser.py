"""Optimisers: AdamW, or Muon for weight matrices and AdamW for all other parameters."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import OptimiserConfig

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of X ← a X + (b A + c A²) X, A = X Xᵀ: the fastest growth of small singular values."""
MATCH_ADAMW = 0.2
"""Scale that matches the RMS of Muon updates to that of AdamW, arXiv:2502.16982, eq. 4."""
NO_GRADIENT = 1e-12
"""Norm below which a gradient has no meaningful direction (such as of a dead layer), so that the
step vanishes with it; its square is well above the underflow of float32."""


def make_optimisers(module: nn.Module, config: OptimiserConfig) -> list[torch.optim.Optimizer]:
    """Return optimisers that together update each parameter of a module once.

    With ``config.kind`` "muon", weight matrices of linear layers are optimised by Muon; embeddings,
    vectors and frequencies, for which a spectral norm is not meaningful, by AdamW. Only these
    matrices decay: zero is no meaningful value of a frequency or of an element's energy.
    """
    matrices, rate, decay = _matrices(module), config.learning_rate, config.weight_decay
    found: list[torch.optim.Optimizer] = []
    if config.kind == "muon" and matrices:
        found.append(Muon(matrices, rate, config.momentum, decay=decay))
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


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan 2024, kellerjordan.github.io/posts/muon).

    The update of each matrix is the semi-orthogonal matrix nearest to its averaged gradient, found
    by Newton-Schulz iteration and scaled to the RMS of AdamW updates, so that both use the same
    learning rate (arXiv:2502.16982). Matrices of the same shape are processed as one batch in their
    own precision; ``torch.optim.Muon`` processes them one by one in bfloat16, which on a CPU takes
    three times as long for width 64, as long for 128, and two thirds for 256
    (``benchmarks.training_steps``).

    Args:
        matrices: Two-dimensional parameters.
        rate: Learning rate.
        momentum: Decay per step of the averaged gradient.
        decay: Decoupled weight decay.
        iterations: Number of Newton-Schulz iterations.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rate: float,
        momentum: float = 0.95,
        *,
        decay: float = 0.0,
        iterations: int = 5,
    ) -> None:
        self.iterations = iterations
        super().__init__(matrices, {"lr": rate, "momentum": momentum, "weight_decay": decay})
        for parameter in chain.from_iterable(group["params"] for group in self.param_groups):
            if parameter.ndim != 2:
                raise ValueError(
                    f"Muon is for matrices; got a parameter of shape {tuple(parameter.shape)}. Use "
                    "AdamW for it."
                )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Perform one step; parameters without a gradient are not changed."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape, parameter.dtype, parameter.device].append(parameter)
            for parameters in alike.values():
                self._change(parameters, group)

    def _change(self, parameters: list[Tensor], options: dict[str, Any]) -> None:
        """Update matrices of the same shape."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = [self._average(parameter) for parameter in parameters]
        momentum, rate = options["momentum"], options["lr"]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = torch.stack(gradients).lerp_(torch.stack(averages), momentum)  # Nesterov momentum
        steps = orthogonalised(ahead, self.iterations)
        steps *= -rate * MATCH_ADAMW * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - rate * options["weight_decay"])
        torch._foreach_add_(parameters, list(steps.unbind()))

    def _average(self, parameter: Tensor) -> Tensor:
        """Return the averaged gradient of a matrix."""
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        return cast(Tensor, state["average"])


def orthogonalised(
    matrices: Float[Tensor, "batch rows columns"], iterations: int = 5
) -> Float[Tensor, "batch rows columns"]:
    """Return approximately U Vᵀ of each matrix U S Vᵀ, with singular values from 0.4 to 1.3.

    Newton-Schulz iteration with the coefficients of Jordan et al. A matrix with a norm below
    :data:`NO_GRADIENT` stays near zero.
    """
    a, b, c = QUINTIC
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp_min(NO_GRADIENT)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    orthogonal: Tensor = x if wide is matrices else x.mT
    return orthogonal

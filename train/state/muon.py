"""The optimiser Muon."""

import ctypes
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lkm_calc.compile import library
from lkm_calc.files import CompileError
from lkm_calc.runtime import own_settings

logger = logging.getLogger("lkm_train")

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of X ← a X + (b A + c A²) X, A = X Xᵀ: the fastest growth of small singular values."""
MATCH_ADAMW = 0.2
"""Scale that matches the RMS of Muon updates to that of AdamW, arXiv:2502.16982, eq. 4."""
NO_GRADIENT = 1e-12
"""Norm below which a gradient has no meaningful direction (such as of a dead layer), so that the
step vanishes with it; its square is well above the underflow of float32."""
TOLERANCE = 1e-3
"""Maximum difference between steps of C++ and torch relative to the largest element of a step."""

_TYPES = {torch.float32: "float", torch.float64: "double"}


class Options(NamedTuple):
    """Options of a step of Muon."""

    rate: float
    momentum: float
    decay: float
    iterations: int


Steps = Callable[[list[Tensor], list[Tensor], list[Tensor], Options], None]
"""Updates weight matrices and the averages of their gradients in place: weights, gradients,
averages, options."""


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan 2024, kellerjordan.github.io/posts/muon).

    The update of each matrix is the semi-orthogonal matrix nearest to its averaged gradient, found
    by Newton-Schulz iteration and scaled to the RMS of AdamW updates, so that both use the same
    learning rate (arXiv:2502.16982). Matrices are processed in their own precision;
    ``torch.optim.Muon`` uses bfloat16.

    On a CPU, a C++ library does this without the overhead of many small operations of torch. It is
    used if its results agree with those of torch in the first step.

    Args:
        matrices: Two-dimensional parameters.
        rate: Learning rate.
        momentum: Decay per step of the averaged gradient.
        decay: Decoupled weight decay.
        iterations: Number of Newton-Schulz iterations.
        compiled: Whether to use the library where possible.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rate: float,
        momentum: float = 0.95,
        *,
        decay: float = 0.0,
        iterations: int = 5,
        compiled: bool = True,
    ) -> None:
        self.iterations = iterations
        self.steps: Steps | None = None if compiled else steps_of_torch
        """How steps are computed; None before the first step, with which this is decided."""
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
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [weight.grad.contiguous() for weight in weights]
            averages = [self._average(weight) for weight in weights]
            options = Options(
                group["lr"], group["momentum"], group["weight_decay"], self.iterations
            )
            if self.steps is None:
                self.steps = chosen(weights, gradients, averages, options)
            self.steps(weights, gradients, averages, options)

    def _average(self, parameter: Tensor) -> Tensor:
        """Return the averaged gradient of a matrix."""
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        return cast(Tensor, state["average"])


def steps_of_torch(
    weights: list[Tensor], gradients: list[Tensor], averages: list[Tensor], options: Options
) -> None:
    """Update matrices, those of the same shape as one batch."""
    alike = defaultdict(list)
    for arrays in zip(weights, gradients, averages, strict=True):
        alike[arrays[0].shape, arrays[0].dtype, arrays[0].device].append(arrays)
    for (shape, *_), found in alike.items():
        some, by, mean = (list(arrays) for arrays in zip(*found, strict=True))
        torch._foreach_lerp_(mean, by, 1 - options.momentum)
        ahead = torch.stack(by).lerp_(torch.stack(mean), options.momentum)  # Nesterov momentum
        steps = orthogonalised(ahead, options.iterations)
        steps *= -options.rate * MATCH_ADAMW * max(shape) ** 0.5
        torch._foreach_mul_(some, 1 - options.rate * options.decay)
        torch._foreach_add_(some, list(steps.unbind()))


class CompiledSteps:
    """Updates contiguous matrices on the CPU, all in float32 or all in float64, in C++.

    The results do not depend on the number of threads.

    Raises:
        CompileError: There is no working compiler, or the cache folder cannot be used.
    """

    def __init__(self) -> None:
        self.library = library("muon", None)

    @own_settings
    def __call__(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        averages: list[Tensor],
        options: Options,
    ) -> None:
        """Update matrices."""
        if not weights:
            return
        shapes = np.array([weight.shape for weight in weights], dtype=np.int64)
        counts = np.array([len(shapes), options.iterations, torch.get_num_threads()])
        numbers = np.array(
            [
                *(options.momentum, -options.rate * MATCH_ADAMW, 1 - options.rate * options.decay),
                *(NO_GRADIENT, *QUINTIC),
            ]
        )
        each = chain.from_iterable(zip(weights, gradients, averages, strict=True))
        arrays = (ctypes.c_void_p * (3 * len(weights)))(*(array.data_ptr() for array in each))
        call = self.library[f"steps_{_TYPES[weights[0].dtype]}"]
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (counts, shapes))
        if call(*pointers, arrays, ctypes.c_void_p(numbers.ctypes.data)):
            raise MemoryError("There is not enough memory for a step of Muon.")


def chosen(
    weights: list[Tensor], gradients: list[Tensor], averages: list[Tensor], options: Options
) -> Steps:
    """Return steps in C++ where they are possible and agree with torch on the given arrays."""
    kinds = {(weight.device.type, weight.dtype) for weight in weights}
    possible = kinds in [{("cpu", dtype)} for dtype in _TYPES]
    if not possible or not all(array.is_contiguous() for array in weights + averages):
        return steps_of_torch
    try:
        compiled = CompiledSteps()
    except CompileError as error:
        logger.info("Steps of Muon are not compiled: %s", error)
        return steps_of_torch
    expected, found = (
        _updates(steps, weights, gradients, averages, options)
        for steps in (steps_of_torch, compiled)
    )
    for one, other in zip(expected, found, strict=True):
        if not (one - other).abs().max() <= TOLERANCE * one.abs().max().clamp_min(1e-6):
            logger.warning(
                "Steps of Muon in C++ differ from those of torch; continuing with torch."
            )
            return steps_of_torch
    return compiled


def _updates(
    steps: Steps,
    weights: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    options: Options,
) -> list[Tensor]:
    """Return the updates of the weights at learning rate 1 without changing anything."""
    updates = [torch.zeros_like(weight) for weight in weights]
    averages = [average.clone() for average in averages]
    steps(updates, gradients, averages, options._replace(rate=1.0, decay=0.0))
    return updates


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

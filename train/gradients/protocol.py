"""Interface of all gradient functions, and the one based on autograd."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import Batch, Totals
from .loss import Losses

LossFunction = Callable[[Batch, Totals, Tensor], Losses]
"""Returns the differentiable losses of a batch for a value of γ."""


@runtime_checkable
class GradientFunction(Protocol):
    """Adds the gradients of a batch, or of a part of it, to those of the weights."""

    padded: bool
    """Whether graphs must be padded to the common capacity of all batches."""

    def __call__(self, batch: Batch, totals: Totals) -> Tensor:
        """Add the gradients and return the contribution to the losses in float64.

        Args:
            batch: A batch or a part of it, with a padded graph if ``padded`` is True.
            totals: Totals of the whole batch.
        """


class DoubleBackward:
    """Gradients by autograd, which for losses of forces differentiates the energy twice.

    Args:
        losses: The losses to differentiate.
        gamma: Weight of LKM, () float64, which may be changed in place.
    """

    padded = False

    def __init__(self, losses: LossFunction, gamma: Tensor) -> None:
        self.losses, self.gamma = losses, gamma

    def __call__(self, batch: Batch, totals: Totals) -> Float[Tensor, " parts"]:
        """Add the gradients of a batch, whose graph may be padded, and return its losses."""
        losses = self.losses(batch, totals, self.gamma)
        losses.total.backward()
        return torch.stack([part.detach().double() for part in losses])


def gradient_difference(
    found: Callable[[Batch], Sequence[Tensor]],
    plain: Callable[[Batch, Totals], Tensor],
    weights: Sequence[Tensor],
    batch: Batch,
    totals: Totals,
) -> tuple[float, float]:
    """Return the norm of the difference from gradients by double backward, and their norm.

    Labels are modified, because gradients of a converged model are small differences of large
    terms, dominated by round-off.

    Args:
        found: Returns the gradients of a batch with respect to the weights.
        plain: Adds the gradients by double backward to those of the weights.
        weights: The weights, whose gradients are restored afterwards.
        batch: The batch.
        totals: Totals of the whole batch.
    """
    # NaN marks missing labels and stays NaN.
    forces = None if batch.forces is None else 0 * batch.forces
    batch = batch._replace(energies=batch.energies + 1, forces=forces)
    kept = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    plain(batch, totals)
    expected = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    for weight, gradient in zip(weights, kept, strict=True):
        weight.grad = gradient
    pairs = list(zip(found(batch), expected, strict=True))
    off = sum((a - b).double().square().sum().item() for a, b in pairs) ** 0.5
    norm = sum(b.double().square().sum().item() for _, b in pairs) ** 0.5
    return float(off), float(norm)


def shapes_of(batch: Batch, totals: Totals) -> tuple[object, ...]:
    """Return a key of everything that is fixed in a program or CUDA graph for a batch."""
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in batch.tensors())
    # If counts are among the tensors, the numbers of labels are not fixed.
    fixed = totals if batch.counts is None else totals[:2]
    return shapes, batch.graph.n_graphs, batch.graph.max_neighbours, batch.atoms, fixed

"""What every way of computing the gradients of a step has in common, and the plain one."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import Batch, Totals
from .loss import Losses

LossFunction = Callable[[Batch, Totals, Tensor], Losses]
"""Returns the losses of a batch with a γ, as they depend on the weights of the model."""


@runtime_checkable
class GradientFunction(Protocol):
    """Adds the gradients of a batch, or of a piece of one, to those of the weights."""

    padded: bool
    """Whether graphs must be padded to the capacity that all batches share."""

    def __call__(self, batch: Batch, totals: Totals) -> Tensor:
        """Add the gradients and return the piece's part of the losses in float64.

        Args:
            batch: With a graph as it is, or padded where ``padded`` says so.
            totals: Of the whole batch.
        """


class DoubleBackward:
    """Gradients by autograd, of forces by differentiating the energy twice.

    Args:
        losses: What to differentiate.
        gamma: The weight of LKM, () float64, which may be changed in place.
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
    """Return how far gradients are from those by double backward, and the norm of these.

    Both with labels that are off: the gradients of a model that has learnt its frames are small
    differences of large terms, and would tell rounding from rounding.

    Args:
        found: Returns the gradients of a batch by the weights.
        plain: Adds those by double backward to the weights.
        weights: Their gradients are left as they were.
        batch: What to compute them of.
        totals: Of the whole batch.
    """
    # NaN stays NaN: a structure without the label.
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
    """Return all that is fixed in work captured or compiled for a batch."""
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in batch.tensors())
    # With counts among the tensors, how many labels there are is not fixed.
    fixed = totals if batch.counts is None else totals[:2]
    return shapes, batch.graph.n_graphs, batch.graph.max_neighbours, batch.atoms, fixed

"""What every way of computing the gradients of a step has in common, and the plain one."""

from collections.abc import Callable
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


def shapes_of(batch: Batch, totals: Totals) -> tuple[object, ...]:
    """Return all that is fixed in work captured or compiled for a batch."""
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in batch.tensors())
    # With counts among the tensors, how many labels there are is not fixed.
    fixed = totals if batch.counts is None else totals[:2]
    return shapes, batch.graph.n_graphs, batch.graph.max_neighbours, batch.atoms, fixed

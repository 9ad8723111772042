"""Gradients captured once as a CUDA graph and replayed: one launch instead of thousands."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lkm_calc.compile import Capture, capture_cuda_graph

from ..data import Batch, Totals
from .protocol import GradientFunction, shapes_of

MAX_GRAPHS = 4
"""Maximum number of shapes captured; each uses the memory of a whole step."""


class Captured(NamedTuple):
    """A captured function with its static inputs and output."""

    inputs: Batch
    losses: Tensor
    """Losses, overwritten by each replay."""
    replay: Callable[[], None]


class CUDAGraphGradients:
    """A gradient function that is captured for the first few shapes of batches and then replayed.

    Shapes repeat if all frames are of one molecule; batches of further shapes are computed without
    a CUDA graph. A replay copies its inputs to those of the capture and adds the gradients to the
    same tensors, which must therefore be kept: set gradients to zero in place.

    Args:
        function: The function to capture, which must not synchronise with the GPU.
        parameters: Parameters whose gradients it updates.
        capture: Function that captures work on a GPU.
    """

    padded = True

    def __init__(
        self,
        function: GradientFunction,
        parameters: list[torch.nn.Parameter],
        capture: Capture = capture_cuda_graph,
    ) -> None:
        self.function, self.parameters = function, parameters
        self.capture = capture
        self.graphs: dict[tuple[object, ...], Captured] = {}

    def __call__(self, batch: Batch, totals: Totals) -> Tensor:
        """Add the gradients of a batch whose graph is padded, and return its losses in float64."""
        key = shapes_of(batch, totals)
        captured = self.graphs.get(key)
        if captured is None:
            if len(self.graphs) >= MAX_GRAPHS:
                return self.function(batch, totals)
            self.graphs[key] = captured = self._captured(batch, totals)
        for fixed, new in zip(captured.inputs.tensors(), batch.tensors(), strict=True):
            fixed.copy_(new)
        captured.replay()
        return captured.losses

    def _captured(self, batch: Batch, totals: Totals) -> Captured:
        """Capture the function; gradients are restored afterwards."""
        before = []
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            before.append(parameter.grad.clone())
        inputs = batch.with_tensors([tensor.clone() for tensor in batch.tensors()])
        (losses,), replay = self.capture(
            lambda: (self.function(inputs, totals),), batch.energies.device
        )
        for parameter, gradient in zip(self.parameters, before, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient)
        return Captured(inputs, losses, replay)

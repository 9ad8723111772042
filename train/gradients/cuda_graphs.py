"""Gradients captured once as a CUDA graph and replayed: one launch instead of thousands."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lkm_calc.compile import Capture, capture_cuda_graph

from ..data import Batch, Totals
from .protocol import GradientFunction, shapes_of

MAX_GRAPHS = 4
"""Shapes captured; each keeps the memory of a whole step."""


class Captured(NamedTuple):
    """A function on fixed inputs."""

    inputs: Batch
    losses: Tensor
    """What it writes when it is replayed."""
    replay: Callable[[], None]


class CUDAGraphGradients:
    """A gradient function that is captured for the first few shapes of batches and then replayed.

    Shapes repeat where all frames are of one molecule; batches of further shapes are computed
    without a CUDA graph. The inputs of a replay are copied to where those of the capture were, and
    the gradients are added to the same tensors, which must therefore stay: zero them in place.

    Args:
        function: What to capture; it must not wait for the GPU.
        parameters: Whose gradients it adds to.
        capture: How.
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
        """Do what the function does, with a batch whose graph is padded to a common capacity."""
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
        """Capture the function, which leaves the gradients as they were."""
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

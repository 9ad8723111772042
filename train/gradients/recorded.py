"""Gradients recorded once as a CUDA graph and replayed: one launch instead of thousands."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lkm_calc.compile import Recorder, record_cuda_graph

from ..data import Batch, Totals

GradientFunction = Callable[[Batch, Totals], Tensor]
"""Adds the gradients of a batch to those of the weights and returns the losses."""

MAX_RECORDINGS = 4
"""Shapes recorded; each keeps the memory of a whole step."""


class Recording(NamedTuple):
    """A function on fixed inputs."""

    inputs: Batch
    losses: Tensor
    """What it writes when it is replayed."""
    replay: Callable[[], None]


class RecordedGradients:
    """A gradient function that is recorded for the first few shapes of batches and then replayed.

    Shapes repeat where all frames are of one molecule; batches of further shapes are computed in
    the ordinary way. The inputs of a replay are copied to where those of the recording stood, and
    the gradients are added to the same tensors, which must therefore stay: zero them in place.

    Args:
        function: What to record; it must not wait for the GPU.
        parameters: Whose gradients it adds to.
        record: How.
    """

    def __init__(
        self,
        function: GradientFunction,
        parameters: list[torch.nn.Parameter],
        record: Recorder = record_cuda_graph,
    ) -> None:
        self.function, self.parameters = function, parameters
        self.record = record
        self.recordings: dict[tuple[object, ...], Recording] = {}

    def __call__(self, batch: Batch, totals: Totals) -> Tensor:
        """Do what the function does, with a batch whose graph is padded to a common capacity."""
        key = shapes_of(batch, totals)
        recording = self.recordings.get(key)
        if recording is None:
            if len(self.recordings) >= MAX_RECORDINGS:
                return self.function(batch, totals)
            self.recordings[key] = recording = self._recorded(batch, totals)
        for fixed, new in zip(recording.inputs.tensors(), batch.tensors(), strict=True):
            fixed.copy_(new)
        recording.replay()
        return recording.losses

    def _recorded(self, batch: Batch, totals: Totals) -> Recording:
        """Record the function, which leaves the gradients as they were."""
        before = []
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            before.append(parameter.grad.clone())
        inputs = batch.with_tensors([tensor.clone() for tensor in batch.tensors()])
        (losses,), replay = self.record(
            lambda: (self.function(inputs, totals),), batch.energies.device
        )
        for parameter, gradient in zip(self.parameters, before, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient)
        return Recording(inputs, losses, replay)


def shapes_of(batch: Batch, totals: Totals) -> tuple[object, ...]:
    """Return all that is fixed in work recorded or compiled for a batch."""
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in batch.tensors())
    # With counts among the tensors, how many labels there are is not fixed.
    fixed = totals if batch.counts is None else totals[:2]
    return shapes, batch.graph.n_graphs, batch.graph.max_neighbours, batch.atoms, fixed

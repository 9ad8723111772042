"""Gradients recorded once as a CUDA graph and replayed: one launch instead of thousands."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lkm_calc.graph import LocalIndices

from .loader import Batch, Totals

GradientFunction = Callable[[Batch, Totals], Tensor]
"""Adds the gradients of a batch to those of the weights and returns the losses."""

MAX_RECORDINGS = 4
"""Shapes recorded; each keeps the memory of a whole step."""


class Recording(NamedTuple):
    """A function on fixed inputs."""

    inputs: Batch
    losses: Tensor
    """What it writes when it is run again."""
    again: Callable[[], None]


class RecordedGradients:
    """A gradient function that is recorded for the first few shapes of batches and then replayed.

    Shapes repeat where all frames are of one molecule; batches of further shapes are computed in
    the ordinary way. The inputs of a replay are copied to where those of the recording stood, and
    the gradients are added to the same tensors, which must therefore stay: zero them in place.

    Args:
        function: What to record; it must not wait for the GPU.
        parameters: Whose gradients it adds to.
        record: How; runs the function and returns what it returned and a function that runs it
            again.
    """

    def __init__(
        self,
        function: GradientFunction,
        parameters: list[torch.nn.Parameter],
        record: "Recorder | None" = None,
    ) -> None:
        self.function, self.parameters = function, parameters
        self.record = record or record_cuda_graph
        self.recordings: dict[tuple[object, ...], Recording] = {}

    def __call__(self, batch: Batch, totals: Totals) -> Tensor:
        """Do what the function does, with a batch whose graph is padded to a common capacity."""
        shapes = tuple((t.shape, t.dtype) for t in _tensors(batch))
        key = (shapes, batch.graph.n_graphs, batch.graph.max_neighbours, batch.atoms, totals)
        recording = self.recordings.get(key)
        if recording is None:
            if len(self.recordings) >= MAX_RECORDINGS:
                return self.function(batch, totals)
            self.recordings[key] = recording = self._recorded(batch, totals)
        for fixed, new in zip(_tensors(recording.inputs), _tensors(batch), strict=True):
            fixed.copy_(new)
        recording.again()
        return recording.losses

    def _recorded(self, batch: Batch, totals: Totals) -> Recording:
        """Record the function, which leaves the gradients as they were."""
        before = []
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            before.append(parameter.grad.clone())
        inputs = _cloned(batch)
        losses, again = self.record(lambda: self.function(inputs, totals))
        for parameter, gradient in zip(self.parameters, before, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient)
        return Recording(inputs, losses, again)


Recorder = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]


def record_cuda_graph(function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Record a function as a CUDA graph, after a few runs that settle allocations and libraries."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()
    return output, graph.replay


def _tensors(batch: Batch) -> list[Tensor]:
    """Return every tensor of a batch, in a fixed order."""
    found = [*vars(batch.graph).values(), *(batch.graph.local or ()), *batch[1:]]
    return [value for value in found if isinstance(value, Tensor)]


def _cloned(batch: Batch) -> Batch:
    """Return a copy of a batch that shares no memory with it."""
    copies: dict[str, Any] = {
        name: v.clone() for name, v in vars(batch.graph).items() if isinstance(v, Tensor)
    }
    graph = replace(batch.graph, **copies)
    if graph.local is not None:
        graph = replace(graph, local=LocalIndices(*(index.clone() for index in graph.local)))
    labels: dict[str, Any] = {
        k: v.clone() for k, v in batch._asdict().items() if isinstance(v, Tensor)
    }
    return batch._replace(graph=graph, **labels)

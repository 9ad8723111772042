"""Capture GPU work once as a CUDA graph and replay it: one launch instead of thousands."""

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import Graph
from ..models import EnergyModel
from .traced import Program, Traced, inputs_of

Work = Callable[[], tuple[Tensor, ...]]
Capture = Callable[[Work, torch.device], tuple[tuple[Tensor, ...], Callable[[], None]]]
"""Runs a function; returns its output and a function that recomputes this output in place."""

_ONE_AT_A_TIME = threading.Lock()
"""torch can only capture one graph at a time in a process."""


def capture_cuda_graph(
    work: Work, device: torch.device
) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """Capture a function as a CUDA graph, after a few warm-up runs.

    Args:
        work: Function that always reads and writes the same memory and never synchronises with the
            GPU.
        device: The GPU on which it runs, which need not be the current one.
    """
    graph = torch.cuda.CUDAGraph()
    with (
        _ONE_AT_A_TIME,
        torch.cuda.device(device),
        torch.cuda.stream(torch.cuda.current_stream()),  # restored even if the capture fails
    ):
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        # Allows other threads to use the GPU during the capture.
        own = torch.cuda.Stream(device)
        with (
            _no_garbage_collection(),
            torch.cuda.graph(graph, stream=own, capture_error_mode="thread_local"),
        ):
            output = work()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return output, replay


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage, then pause collection: freeing older graphs would break a capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class _Captured:
    """A CUDA graph with its static inputs and outputs."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    replay: Callable[[], None]
    weights: Sequence[Tensor]
    """Weights of the model, kept alive in case it is moved to another device or dtype."""

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for own, new in zip(self.inputs, tensors, strict=True):
            own.copy_(new, non_blocking=True)
        self.replay()
        return [output.clone() for output in self.outputs]  # overwritten by the next replay


def captured_forces(
    model: EnergyModel, padded: Graph, stress: bool, capture: Capture = capture_cuda_graph
) -> Program:
    """Capture energy and forces for graphs of the shapes of a padded graph."""
    fixed = padded.to(model.device)
    inputs = inputs_of(fixed)
    traced = Traced(model, fixed, stress)
    outputs, replay = capture(lambda: traced(*inputs), model.device)
    weights = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    return _Captured(inputs, outputs, replay, weights)

"""Work on a GPU recorded once and replayed: one launch instead of thousands."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Work = Callable[[], tuple[Tensor, ...]]
Recorder = Callable[[Work, torch.device], tuple[tuple[Tensor, ...], Callable[[], None]]]
"""Runs a function and returns what it returned, and a function that computes it again, in place."""

_ONE_AT_A_TIME = threading.Lock()
"""torch records one graph at a time in a process."""


def record_cuda_graph(
    work: Work, device: torch.device
) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """Record a function as a CUDA graph, after a few runs that settle allocations and libraries.

    Args:
        work: Reads and writes the same memory at every run, and never waits for the GPU.
        device: The GPU it runs on, whichever is the current one.
    """
    graph = torch.cuda.CUDAGraph()
    with (
        _ONE_AT_A_TIME,
        torch.cuda.device(device),
        torch.cuda.stream(torch.cuda.current_stream()),  # set back even if a recording fails
    ):
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        # Other threads may go on using the GPU.
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
    """Collect garbage now and not for a while: older graphs in it would break a recording."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

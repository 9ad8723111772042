"""How CUDA graphs are captured, with a stand-in for torch's streams."""

import gc
import threading
import time
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from lkm_calc.compile.cuda_graphs import capture_cuda_graph

GPU = torch.device("cuda", 0)


def fake_streams(monkeypatch):
    """Let torch.cuda have streams without a GPU.

    Returns:
        A list that holds the current one, and one of the pairs of which one waited for the other.
    """
    current, waits = ["default"], []

    @contextmanager
    def stream(new):
        before, current[0] = current[0], new
        try:
            yield
        finally:
            current[0] = before

    @contextmanager
    def graph(captured, stream, capture_error_mode="global"):
        assert capture_error_mode == "thread_local", "other threads could not use the GPU"
        before, current[0] = current[0], stream
        yield
        # As in torch: not where it fails.
        current[0] = before

    class Stream:
        def __init__(self, device=None):
            self.device = device

        def wait_stream(self, other):
            waits.append((self, other))

    current[0] = Stream()
    cuda = {
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "Stream": Stream,
        "current_stream": lambda: current[0],
        "device": lambda device: nullcontext(),
        "graph": graph,
        "stream": stream,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return current, waits


def test_a_capture_runs_on_streams_of_its_own_and_leaves_the_current_one(monkeypatch):
    current, waits = fake_streams(monkeypatch)
    usual, streams = current[0], []

    def work():
        streams.append(current[0])
        return (torch.ones(1),)

    capture_cuda_graph(work, GPU)
    assert len(streams) > 1
    assert usual not in streams
    assert streams[0] is not streams[-1]
    assert current[0] is usual
    assert waits == [(streams[0], usual), (usual, streams[0])], "before the trials, and after them"


def test_captures_of_several_threads_follow_each_other(monkeypatch):
    fake_streams(monkeypatch)
    running, together = [], []

    def work():
        running.append(1)
        together.append(len(running))
        time.sleep(0.01)
        running.pop()
        return (torch.ones(1),)

    threads = [threading.Thread(target=capture_cuda_graph, args=(work, GPU)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 12


def test_a_capture_that_fails_leaves_the_current_stream(monkeypatch):
    current, _ = fake_streams(monkeypatch)
    usual, runs = current[0], []

    def work():
        runs.append(1)
        if len(runs) > 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        return (torch.ones(1),)

    with pytest.raises(RuntimeError, match="not permitted"):
        capture_cuda_graph(work, GPU)
    assert current[0] is usual
    capture_cuda_graph(lambda: (torch.ones(1),), GPU)  # nothing is held up


def test_no_older_graph_is_destroyed_while_one_is_captured(monkeypatch):
    """It would be an operation that is not permitted then."""
    fake_streams(monkeypatch)
    collecting, alive = [], []

    class Graph:
        pass

    def work():
        collecting.append(gc.isenabled())
        alive.append(older() is not None)
        return (torch.ones(1),)

    gc.disable()
    try:
        garbage = Graph()
        garbage.itself, older = garbage, weakref.ref(garbage)
        del garbage
        capture_cuda_graph(work, GPU)
        assert alive[-1] is False
        assert not gc.isenabled()
    finally:
        gc.enable()
    capture_cuda_graph(work, GPU)
    assert collecting[-1] is False
    assert gc.isenabled()

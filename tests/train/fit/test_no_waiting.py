"""A training step never waits for its device.

Tensors on the device "meta" have no values: whatever asks for one, for a size that depends on one,
or moves one to the CPU fails there, as it would make the processor wait for a GPU.
"""

import copy
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lkm_calc import MODELS
from train.config import Config, LossConfig, OptimiserConfig, RunConfig
from train.data.loader import GraphFrames
from train.fit.parallel import Stop, Workers
from train.fit.step import Stepper
from train.gradients.cuda_graphs import MAX_GRAPHS
from train.state.state import TrainingState

from ...support import crystal, rattled, relative_error, small_model
from ..data.test_loader import frames_of

META = torch.device("meta")


class NoTransfers(TorchDispatchMode):
    """Refuse copies between the CPU and the device, which a GPU would be waited for at."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        # Tensors without dimensions are how numbers travel into kernels.
        devices = {t.device.type for t in tensors if t.dim() > 0}
        sent = (kwargs or {}).get("non_blocking", False)
        assert sent or len(devices) < 2, f"{func} joins tensors on {devices}"
        return result


class NoLists(TorchFunctionMode):
    """Refuse tensors made of Python's numbers, which are such copies as well."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            assert result.device.type == "cpu", f"{func} copies {args} to the device"
        return result


@contextmanager
def no_waiting():
    with NoLists(), NoTransfers():
        yield


def on_meta(data):
    """Return frames as if they were kept on a GPU."""
    moved = copy.copy(data)
    for name, value in vars(data).items():
        if name in ("n_stresses", "n_forces", "max_neighbours"):
            continue
        if isinstance(value, torch.Tensor):
            setattr(moved, name, value.to(META))
        elif isinstance(value, tuple):
            setattr(moved, name, type(value)(*(t.to(META) for t in value)))
        elif hasattr(value, "on_device"):
            rows = copy.copy(value)
            rows.on_device = value.on_device.to(META)
            setattr(moved, name, rows)
    moved.device = META
    return moved


def example(name, periodic=False):
    """Return frames on the CPU, a model and the configuration of a run."""
    structures = [crystal(), crystal(1)] if periodic else [rattled(), rattled("H2O")]
    frames = frames_of(structures)
    if periodic:
        cells, pbc = (np.stack([getattr(a, n) for a in structures]) for n in ("cell", "pbc"))
        frames = replace(frames, cells=cells, pbc=pbc, stress=cells * 0)
    model = small_model(name)
    loss = LossConfig(stress=1.0, gamma=0.1, lkm_scale_free=True, energy_per_atom=True)
    optimiser = OptimiserConfig(accumulate=2)
    return GraphFrames(frames, model, torch.device("cpu")), model, loss, optimiser


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_waits_for_nothing(name, periodic, cuda_graphs):
    data, model, loss, optimiser = example(name, periodic)
    config = Config(loss=loss, optimiser=optimiser, run=RunConfig(cuda_graphs=cuda_graphs))
    state = TrainingState.create(model.to(META), optimiser)
    stepper = Stepper(state, on_meta(data), config, Workers(), total=10)
    if cuda_graphs:
        stepper.gradients.capture = run_again
    with no_waiting():
        stepper.step(torch.tensor([1, 0, 0]), 1e-3, Stop([], Workers()))


def test_the_check_finds_what_waits():
    for waits in (
        lambda x: x.nonzero(),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.new_tensor([1.0, 2.0]) * x,
        lambda x: x + torch.ones(2),
        lambda x: x.cpu(),
    ):
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), no_waiting():
            waits(torch.ones(2, device=META))


def run_again(function, device):
    """Stand in for a CUDA graph: run the function, and again when asked."""
    output = function()

    def again():
        for old, new in zip(output, function(), strict=True):
            old.copy_(new)

    return output, again


@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_are_ordinary_steps(name):
    frames = frames_of([rattled(seed=k) for k in range(6)])
    frames = replace(frames, forces=frames.forces / 10)
    weights, sums = [], []
    for cuda_graphs in (False, True):
        optimiser = OptimiserConfig(accumulate=2)
        loss = LossConfig(gamma=0.1, gamma_warmup_steps=3)
        config = Config(loss=loss, optimiser=optimiser, run=RunConfig(cuda_graphs=cuda_graphs))
        model = small_model(name)
        data = GraphFrames(frames, model, torch.device("cpu"))
        state = TrainingState.create(model, optimiser)
        stepper = Stepper(state, data, config, Workers(), total=10)
        if cuda_graphs:
            stepper.gradients.capture = run_again
        for indices in ([0, 1, 2, 3], [4, 5, 0, 2], [1, 3, 5, 4], [5]):
            stepper.step(torch.tensor(indices), 1e-3, Stop([], Workers()))
        if cuda_graphs:
            assert len(stepper.gradients.graphs) == 2  # two frames, and the last one alone
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        sums.append(state.loss_sums)
    assert relative_error(weights[1], weights[0]) < 1e-8
    assert relative_error(sums[1], sums[0]) < 1e-8


def test_batches_of_many_shapes_are_computed_in_the_ordinary_way():
    frames = frames_of([rattled(n) for n in ("H2O", "CH4", "NH3", "C6H6", "CH3CH2OH", "CO2")])
    model = small_model()
    data = GraphFrames(frames, model, torch.device("cpu"))
    state = TrainingState.create(model, OptimiserConfig())
    stepper = Stepper(state, data, Config(run=RunConfig(cuda_graphs=True)), Workers(), total=10)
    stepper.gradients.capture = run_again
    for k in range(len(frames)):
        stepper.step(torch.tensor([k]), 1e-3, Stop([], Workers()))
    assert len(stepper.gradients.graphs) == MAX_GRAPHS
    assert state.loss_sums.isfinite().all()

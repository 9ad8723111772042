"""Calculations and training steps on a GPU, as far as they can be tried without one.

On a fake GPU that holds real values, and refuses what a real one would: see tests/fake_gpu.py.
"""

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lkm_calc import MODELS, Graph, LKMCalculator, energy_and_forces, load_model
from lkm_calc.compile.programs import ProgramForces
from lkm_calc.potential.second_derivatives import hessian
from lkm_calc.potential.zbl import with_zbl
from train.config import Config, LossConfig, OptimiserConfig, RunConfig
from train.data.loader import GraphFrames
from train.fit.loop import fit
from train.fit.parallel import Stop, Workers
from train.fit.step import Stepper
from train.gradients.cuda_graphs import CUDAGraphGradients
from train.gradients.mixing import learned_teacher
from train.report.calibration import calibrate
from train.report.evaluate import predict
from train.state.state import TrainingState

from ..fake_gpu import GPU, fake_gpu
from ..support import (
    ROUND_OFF,
    assert_same_numbers,
    crystal,
    graph_of,
    rattled,
    relative_error,
    rmd17_arrays,
    small_model,
    write_npz,
)
from ..train.data.test_loader import frames_of
from ..train.fit.test_loop import config
from ..train.fit.test_no_waiting import run_again

CPU = torch.device("cpu")
SHALLOW = {
    "dimenet++": {"num_blocks": 1},
    "mxmnet": {"num_layers": 1},
    "ace": {"num_interactions": 1},
    "pamnet": {"num_layers": 1},
}


@pytest.fixture
def gpu():
    with fake_gpu() as there:
        yield there


def shallow(name="pamnet", seed=0):
    return small_model(name, seed, **SHALLOW[name])


MIXED = {
    "sum": lambda x: x + torch.ones(2),
    "number of the GPU": lambda x: torch.ones(2) * x.sum(),
    "joined": lambda x: torch.cat([x, torch.ones(1)]),
    "number joined": lambda x: torch.stack([x[0], torch.ones(())]),
    "rows": lambda x: x.index_select(0, torch.tensor([1])),
    "rows added": lambda x: x.index_add(0, torch.arange(2), x),
    "default device": lambda x: torch.eye(2) @ x,
    "out": lambda x: torch.ones(2).mul_(x),
    "sum kept on the CPU": lambda x: torch.zeros(()).add_(x.detach().sum()),
    "optimiser": lambda x: torch._foreach_add_([x.detach()], [torch.ones(2)]),
    "NumPy": lambda x: x.detach().numpy(),
}
WAITED_FOR = {
    "number": lambda x: x.sum().item(),
    "truth": lambda x: bool(x.any()),
    "list": lambda x: x.tolist(),
    "to the CPU": lambda x: x.cpu(),
    "to the GPU": lambda x: torch.ones(2).to(GPU),
    "to pageable memory": lambda x: torch.ones(2).copy_(x, non_blocking=True),
    "made there": lambda x: torch.tensor([1.0, 2.0], device=GPU),
    "made beside": lambda x: x.new_tensor([1.0, 2.0]),
    "places": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "index of the CPU": lambda x: x[torch.tensor([1])],
    "repeats": lambda x: torch.repeat_interleave(x.long()),
    "likeness": lambda x: torch.allclose(x, x),
    "kinds": lambda x: torch.unique_consecutive(x),
    "rows of a kind": lambda x: torch.unique(x.view(2, 1), dim=0),
    "inverse": lambda x: torch.linalg.inv(torch.diag(x)),
    "eigenvalues": lambda x: torch.linalg.eigh(torch.diag(x)),
}
FREE = {
    "number of the CPU": lambda x: x * torch.ones(()) + 2.0,
    "made there": lambda x: torch.zeros(2, device=GPU) + x.new_ones(2),
    "sent": lambda x: torch.ones(2).to(GPU, non_blocking=True),
    "to pinned memory": lambda x: torch.empty(2, pin_memory=True).copy_(x, non_blocking=True),
    "repeats, told how many": lambda x: torch.repeat_interleave(x.long(), output_size=2),
}


@pytest.mark.parametrize("mixes", MIXED.values(), ids=MIXED)
def test_mixed_devices_are_refused(mixes, gpu):
    x = torch.ones(2, device=GPU, requires_grad=True)
    with pytest.raises((RuntimeError, TypeError), match=r"same device|numpy"):
        mixes(x)


@pytest.mark.parametrize("waits", WAITED_FOR.values(), ids=WAITED_FOR)
def test_what_waits_is_noted(waits, gpu):
    waits(torch.ones(2, device=GPU))
    assert len(gpu.waits) == 1


@pytest.mark.parametrize("free", FREE.values(), ids=FREE)
def test_what_does_not_wait_is_not(free, gpu):
    free(torch.ones(2, device=GPU))
    assert gpu.waits == []


@pytest.mark.parametrize("name", MODELS)
def test_calculations_give_the_numbers_of_the_cpu(name, gpu):
    model = with_zbl(shallow(name), {"H-H": 1.5, "C-H": 1.2})
    on_gpu, on_cpu = (LKMCalculator(model, str(device)) for device in (GPU, CPU))
    assert {tensor.device for tensor in on_gpu.model.state_dict().values()} == {GPU}
    for atoms in (rattled(), crystal()):
        on_gpu.calculate(atoms)
        on_cpu.calculate(atoms)
        assert_same_numbers(on_gpu, on_cpu)
    several = [crystal(), crystal(1), rattled("H2O")]
    both = zip(on_gpu.iterate(several), on_cpu.iterate(several), strict=True)
    for mine, other in both:
        for part, expected in zip(mine, other, strict=True):
            for key, value in expected.items():
                np.testing.assert_allclose(part[key], value, rtol=ROUND_OFF, atol=ROUND_OFF)


def compiled_calculator(model, gpu):
    """Return a calculator that takes programs, run again where a GPU replays them."""

    def capture(work, device):
        before = list(gpu.waits)
        captured = run_again(work, device)
        assert device == GPU
        assert gpu.waits == before, "what waits cannot be captured"
        return captured

    calculator = LKMCalculator(model, str(GPU), compile=True)
    for forces in calculator._committee.force_functions:
        assert isinstance(forces, ProgramForces)
        forces.capture = capture
    return calculator


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_step_waits_once(name, gpu, monkeypatch):
    monkeypatch.setattr(ProgramForces, "_is_faster", lambda *arguments: True)
    model = with_zbl(shallow(name), {"H-H": 1.5, "C-H": 1.2})
    quick, plain = compiled_calculator(model, gpu), LKMCalculator(model, "cpu")
    for structures in ([rattled(seed=k, amplitude=0.02) for k in range(3)], [crystal()] * 2):
        for k, atoms in enumerate(structures):
            gpu.waits.clear()
            quick.calculate(atoms)
            assert not quick.ordinary
            if k > 0:
                assert gpu.waits == ["copy to the CPU"]
            plain.calculate(atoms)
            assert_same_numbers(quick, plain)


def test_results_of_a_replay_are_left_by_the_next(gpu, monkeypatch):
    """The calculator reads the embeddings when it is asked for extras, maybe steps later."""
    monkeypatch.setattr(ProgramForces, "_is_faster", lambda *arguments: True)
    model = shallow("dimenet++").to(GPU)
    forces = ProgramForces(model, capture=run_again)
    first, _ = (forces(Graph.from_atoms(rattled(seed=k), model.cutoff)) for k in range(2))
    assert forces.used
    expected = energy_and_forces(model, graph_of(rattled(), model))
    assert relative_error(first.forces, expected.forces) < ROUND_OFF
    for layer, other in zip(first.embeddings, expected.embeddings, strict=True):
        assert relative_error(layer, other) < ROUND_OFF


def test_committees_and_guards(gpu):
    members = [shallow("dimenet++"), shallow("pamnet", 1)]
    calibrated = load_model("rmd17-ethanol", dtype=torch.float64)
    for source, options in ((members, {}), (calibrated, {"on_extrapolation": "stop"})):
        on_gpu, on_cpu = (LKMCalculator(source, str(d), **options) for d in (GPU, CPU))
        atoms = rattled(amplitude=0.01)
        on_gpu.calculate(atoms)
        on_cpu.calculate(atoms)
        assert len(on_cpu.extras) > 1
        assert_same_numbers(on_gpu, on_cpu)


def test_hessians(gpu):
    model, atoms = shallow("dimenet++"), rattled("H2O")
    expected = hessian(model, graph_of(atoms, model))
    model = copy.deepcopy(model).to(GPU)
    assert relative_error(hessian(model, graph_of(atoms, model)), expected) < ROUND_OFF


RECIPES = {
    "adamw": ({"kind": "adamw"}, {"gamma": 0.1}, False),
    "muon": ({"kind": "muon"}, {"gamma": "auto", "lkm_teacher": "learned"}, False),
    "captured": ({"kind": "muon"}, {"gamma": "auto", "forces_kind": "huber"}, True),
    "learned, captured": ({"kind": "adamw"}, {"gamma": 0.1, "lkm_teacher": "learned"}, True),
    "error": ({"kind": "adamw"}, {"gamma": 0.1, "lkm_teacher": "error"}, True),
}


def labelled(periodic):
    """Return frames with small forces, of crystals with a stress if periodic."""
    structures = [crystal(), crystal(1)] if periodic else [rattled(), rattled("H2O")]
    frames = frames_of(structures)
    frames = replace(frames, forces=frames.forces / 10)
    if not periodic:
        return frames
    cells, pbc = (np.stack([getattr(a, n) for a in structures]) for n in ("cell", "pbc"))
    return replace(frames, cells=cells, pbc=pbc, stress=cells * 0)


def trained(name, periodic, recipe, device, noted=None):
    """Make two steps and return weights, averages and losses."""
    optimiser, loss, captured = RECIPES[recipe]
    optimiser = OptimiserConfig(**optimiser, accumulate=2 if captured else 1)
    loss = LossConfig(stress=1.0, energy_per_atom=True, **loss)
    model = shallow(name).to(device)
    data = GraphFrames(labelled(periodic), model, device)
    state = TrainingState.create(model, optimiser, learned_teacher(loss, model))
    run = RunConfig(cuda_graphs=captured, kernels="off")  # there is none on a GPU
    settings = Config(loss=loss, optimiser=optimiser, run=run)
    stepper = Stepper(state, data, settings, Workers(), total=10)
    if captured:
        stepper.gradients.capture = run_again
    if noted is not None:
        noted.clear()
    for _ in range(2):
        stepper.step(torch.tensor([1, 0]), 1e-3, Stop([], Workers()))
    waited = list(noted or [])
    modules = (state.trained, state.averaged_model)
    weights = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in modules]
    return waited, [*weights, state.loss_sums, state.loss_averages]


@pytest.mark.parametrize(
    ("name", "periodic", "recipe"),
    [
        *((name, False, "adamw") for name in MODELS),
        *((name, True, "captured") for name in MODELS),
        ("dimenet++", True, "muon"),
        ("pamnet", False, "learned, captured"),
        ("mxmnet", False, "error"),
    ],
)
def test_training_steps_wait_for_nothing(name, periodic, recipe):
    _, expected = trained(name, periodic, recipe, CPU)
    with fake_gpu() as gpu:
        waited, found = trained(name, periodic, recipe, GPU, gpu.waits)
        assert waited == []
        for mine, other in zip(found, expected, strict=True):
            assert mine.device == GPU
            assert relative_error(mine, other) < ROUND_OFF


def test_a_trained_model_is_measured_and_calibrated(gpu):
    found = []
    for device in (GPU, CPU):
        model = shallow().to(device)
        data = GraphFrames(labelled(periodic=False), model, device)
        found.append((predict(model, data, 2), calibrate(model, data, data, 2)))
    (mine, (calibration, latent)), (other, (expected, _)) = found
    assert relative_error(mine.forces.predicted, other.forces.predicted) < ROUND_OFF
    assert calibration.closest == expected.closest
    assert calibration.force_error == pytest.approx(expected.force_error)
    assert {t.device for one in latent.elements.values() for t in vars(one).values()} == {GPU}


def test_a_whole_run(tmp_path, monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    captured = partial(CUDAGraphGradients, capture=run_again)
    monkeypatch.setattr("train.gradients.choice.CUDAGraphGradients", captured)
    data = write_npz(tmp_path / "springs.npz", **rmd17_arrays(30))
    models = []
    for device in (GPU, CPU):
        on_gpu = device == GPU
        run = {"device": str(device), "cuda_graphs": on_gpu, "dtype": "float64", "kernels": "off"}
        options = config(data, tmp_path / device.type, **{f"run__{k}": v for k, v in run.items()})
        hypers = options.model.hypers | SHALLOW["dimenet++"]
        options = replace(
            options,
            model=replace(options.model, hypers=hypers),
            data=replace(options.data, n_train=16, n_validation=8),
            optimiser=replace(options.optimiser, epochs=2, batch_size=8),
        )
        if on_gpu:
            assert fit(options, stop_after=1) is None
        models.append(load_model(fit(options)))
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        assert relative_error(mine, other) < 1e-8
    assert models[0].latent is not None


def test_several_processes_agree_to_stop_without_waiting(gpu, monkeypatch):
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    stop = Stop([], Workers(0, 2))
    for asked, told in ((0.0, False), (1.0, False), (0.0, True), (0.0, True)):
        stop.agree(torch.full((1,), asked, device=GPU))
        assert bool(stop) == told, "a step later"
    assert gpu.waits == []

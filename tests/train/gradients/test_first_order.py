"""Training by a kernel from first derivatives alone, against double backward."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lkm_calc import Graph, build_model, energy_and_forces
from lkm_calc.compile.kernels import Kernel, kernel, trains
from lkm_calc.nn.layers import MAX_NUMBER
from train.config import ConfigError, config_from_table
from train.data.frames import Frames
from train.data.loader import GraphFrames
from train.fit.loop import fit
from train.gradients import first_order, trains_by_kernel
from train.gradients.first_order import KernelGradients
from train.gradients.loss import training_loss

from ...support import crystal, rattled, small_model

HYPERS = {
    "ace": [
        {},
        {"max_ell": 3, "num_channels": 19, "lkm_tap": "norms"},
        {"gated": False, "normalised": False, "linear_readouts": True, "num_interactions": 3},
        {"node_dependent": False, "runtime_geometry": False, "correlation": 4},
        {"correlation": 1, "num_interactions": 1},
    ],
    "dimenet++": [
        {},
        {"hidden": 19, "num_blocks": 1, "num_spherical": 3, "lkm_tap": "head"},
        {"num_blocks": 3, "triplet_dim": 5, "num_radial": 3, "num_output_dense": 0},
        {"num_before_skip": 0, "num_after_skip": 1, "output_dim": 33},
    ],
    "mxmnet": [
        {},
        {"hidden": 19, "num_layers": 1, "num_spherical": 2, "lkm_tap": "head"},
        {"num_layers": 3, "num_radial": 3, "local_cutoff": 1.2},
    ],
    "pamnet": [
        {},
        {"hidden": 19, "num_layers": 1, "two_hop": False, "lkm_tap": "head"},
        {"num_layers": 3, "num_spherical": 2, "num_radial": 3, "lkm_tap": "global"},
        {"local_cutoff": 1.2, "lkm_tap": "local"},
    ],
}
CASES = [(name, hypers) for name, cases in HYPERS.items() for hypers in cases]


def molecules(count=4):
    """Return labelled structures of different sizes."""
    names = ("CH3CH2OH", "H2O", "CH4", "CH3CHO", "C2H4")
    atoms = [rattled(names[k % len(names)], seed=k) for k in range(count)]
    rng = np.random.default_rng(0)
    sizes = [len(one) for one in atoms]
    return Frames(
        numbers=np.concatenate([one.numbers for one in atoms]).astype(np.int64),
        positions=np.concatenate([one.positions for one in atoms]),
        energies=rng.normal(size=count),
        forces=rng.normal(size=(sum(sizes), 3)),
        starts=np.cumsum([0, *sizes]),
    )


def crystals(count=3):
    """Return periodic structures with labels for stress, one without."""
    atoms = [crystal(seed=k) for k in range(count)]
    rng = np.random.default_rng(0)
    stress = rng.normal(size=(count, 3, 3))
    stress += stress.transpose(0, 2, 1)
    stress[-1] = np.nan
    return Frames(
        numbers=np.concatenate([one.numbers for one in atoms]).astype(np.int64),
        positions=np.concatenate([one.positions for one in atoms]),
        energies=rng.normal(size=count),
        forces=rng.normal(size=(sum(map(len, atoms)), 3)),
        starts=np.arange(count + 1) * len(atoms[0]),
        cells=np.stack([one.cell.array for one in atoms]),
        pbc=np.stack([one.pbc for one in atoms]),
        stress=stress,
    )


def config_of(**loss):
    return config_from_table({"data": {"train": "none"}, "loss": {"gamma": 0.1, **loss}})


def compared(model, frames, **loss):
    """Return the gradients of a batch by the kernel, and by double backward in float64."""
    model.calibrate(0.7, {}, range(1, 20))
    config = config_of(**loss).loss
    data = GraphFrames(frames, model, torch.device("cpu"))
    batch = data.batch(torch.arange(len(frames)))

    def losses(results, batch, totals):
        return training_loss(results, batch, config, totals)

    ours = KernelGradients(model, losses, lambda *_: pytest.fail("not asked for"))
    found, gradients = ours.gradients(batch, batch.totals())
    reference = copy.deepcopy(model).double().requires_grad_(True)
    results = energy_and_forces(reference, batch.graph, True, batch.stress is not None)
    expected = training_loss(results, batch, config)
    names = {weight: name for name, weight in model.named_parameters()}
    weights = [reference.get_parameter(names[weight]) for weight in ours.weights]
    exact = torch.autograd.grad(expected.total, weights, materialize_grads=True)
    assert torch.allclose(found.total.double(), expected.total.double(), rtol=1e-4)
    return (torch.cat([one.flatten().double() for one in part]) for part in (gradients, exact))


def relative(found, exact):
    return float((found - exact).norm() / exact.norm())


@pytest.fixture(scope="module", autouse=True)
def _kept(tmp_path_factory):
    """Compile each kernel once for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LKM_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.mark.parametrize(("name", "hypers"), CASES)
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_gradients_are_those_of_double_backward(name, hypers, kind):
    model = small_model(name, **hypers)
    assert relative(*compared(model, molecules(), kind=kind)) < 1e-5


@pytest.mark.parametrize("name", HYPERS)
def test_gradients_in_single_precision(name):
    torch.manual_seed(0)
    model = build_model(name)  # as smooth as a trained one
    for key, weight in model.named_parameters():
        if key.endswith("value.weight"):
            torch.nn.init.normal_(weight, std=0.3)
    assert relative(*compared(model, molecules(), kind="l2")) < 1e-3


@pytest.mark.parametrize("name", HYPERS)
def test_energies_alone_need_one_gradient(name, monkeypatch):
    plain, sizes = Kernel.gradients, []

    def counted(self, graph, *others):
        sizes.append((graph.n_graphs, self.model.dtype))
        return plain(self, graph, *others)

    monkeypatch.setattr(Kernel, "gradients", counted)
    model = small_model(name).float()
    assert relative(*compared(model, molecules(), forces=0.0)) < 1e-5
    assert sizes == [(4, torch.float32)]


@pytest.mark.parametrize("name", HYPERS)
@pytest.mark.parametrize("loss", [{"stress": 0.5}, {"stress": 1.0, "forces": 0.0, "energy": 0.0}])
def test_gradients_of_stress(name, loss):
    assert relative(*compared(small_model(name), crystals(), kind="l2", **loss)) < 1e-5


@pytest.mark.parametrize("name", HYPERS)
def test_gradients_of_embeddings_alone(name):
    loss = {"energy": 1e-12, "forces": 0.0}
    assert relative(*compared(small_model(name), molecules(), **loss)) < 1e-5


@pytest.mark.parametrize("name", HYPERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_are_the_same_bits_with_threads(name, threads, monkeypatch):
    monkeypatch.setattr(kernel, "threads_worth", lambda rows: threads)
    model = small_model(name).float()
    graphs = [Graph.from_atoms(rattled("C6H6", seed=k), model.cutoff) for k in range(8)]
    graph = Graph.collate(graphs)
    ones = torch.ones(len(graph.numbers), dtype=torch.float64)
    with_threads = Kernel(model).gradients(graph, graph.edge_vectors(), ones, None)
    monkeypatch.setattr(kernel, "threads_worth", lambda rows: 1)
    alone = Kernel(model).gradients(graph, graph.edge_vectors(), ones, None)
    assert all(torch.equal(a, b) for a, b in zip(with_threads, alone, strict=True))


@pytest.mark.parametrize("name", HYPERS)
def test_kernels_follow_their_weights(name):
    model = small_model(name)
    graph = Graph.from_atoms(rattled(), model.cutoff)
    ours = Kernel(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    ours.update()
    assert torch.allclose(ours(graph).forces, energy_and_forces(model, graph).forces, atol=1e-10)


RUN = {
    "ace": {"num_channels": 8, "num_interactions": 2, "radial_hidden": 8},
    "dimenet++": {"hidden": 16, "num_blocks": 1, "triplet_dim": 8, "output_dim": 16},
    "mxmnet": {"hidden": 16, "num_layers": 1, "num_spherical_radial": 3},
    "pamnet": {"hidden": 16, "num_layers": 1, "num_spherical_radial": 3},
}


def run(folder, data, name="ace", **table):
    """Return the configuration of a short run of a small model."""
    return config_from_table(
        {
            "data": {"train": str(data), "n_train": 40, "n_validation": 10},
            "model": {"name": name, "hypers": RUN[name]},
            "optimiser": {"epochs": 2, "warmup_steps": 4},
            "run": {"directory": str(folder), "device": "cpu", **table},
        }
    )


@pytest.fixture
def example(request):
    return request.config.rootpath / "md_examples" / "ethanol_gfn2.h5"


@pytest.mark.parametrize("name", RUN)
def test_a_run_is_that_of_double_backward(name, tmp_path, example):
    losses = []
    for kernels in ("auto", "off"):
        folder = tmp_path / kernels
        fit(run(folder, example, name, kernels=kernels))
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["train_total"] for row in rows])
    assert np.allclose(*losses, rtol=2e-3)


def test_without_a_compiler_a_run_takes_double_backward(tmp_path, example, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    fit(run(tmp_path, example), stop_after=2)
    assert "Training without the compiled kernel" in caplog.text
    assert "no-such-compiler" in caplog.text
    assert torch.load(tmp_path / "state.pt", weights_only=True)["counters"]["step"] == 2


@pytest.mark.parametrize("name", RUN)
def test_a_run_resumes_to_the_same_bits(name, tmp_path, example):
    whole = fit(run(tmp_path / "whole", example, name))
    assert fit(run(tmp_path / "parts", example, name), stop_after=5) is None
    resumed = fit(run(tmp_path / "parts", example, name))
    assert whole is not None
    assert resumed is not None
    first, second = load_file(whole), load_file(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", RUN)
def test_a_new_model_passes_the_check(name, tmp_path, example, caplog):
    with caplog.at_level(logging.INFO):
        fit(run(tmp_path, example, name), stop_after=1)
    assert "Training with kernels: relative error" in caplog.text
    assert "continuing with double backward" not in caplog.text


@pytest.mark.parametrize("name", RUN)
def test_a_wrong_kernel_is_refused(name, tmp_path, example, monkeypatch, caplog):
    monkeypatch.setattr(first_order, "TOLERANCE", 0.0)
    assert fit(run(tmp_path / "run", example, name)) is not None
    assert "continuing with double backward" in caplog.text


@pytest.mark.parametrize("name", RUN)
def test_what_is_compared_at_the_start_sees_all_weights(name, tmp_path, example, monkeypatch):
    """A kernel that is wrong deep inside a new model, whose readouts are zero, is noticed."""
    gradients = Kernel.gradients

    def wrong(self, *arguments):
        found = gradients(self, *arguments)
        embedding = next(k for k, one in enumerate(found) if len(one) == MAX_NUMBER + 1)
        found[embedding] = found[embedding] * 2
        return found

    monkeypatch.setattr(Kernel, "gradients", wrong)
    losses = []
    monkeypatch.setattr(first_order.logger, "warning", lambda text, *_: losses.append(text))
    assert fit(run(tmp_path / "run", example, name)) is not None
    assert any("continuing with double backward" in text for text in losses)


def test_comparing_leaves_the_weights_as_they_were():
    weights = [torch.zeros(3), torch.tensor([0.0, 1.0])]
    with first_order.without_zeros(weights):
        assert weights[0].all()
        assert weights[1].tolist() == [0.0, 1.0]
    assert weights[0].tolist() == [0.0] * 3


def test_which_runs_take_the_kernel():
    model = small_model("ace").float()
    assert trains(model)
    assert trains(small_model("mxmnet"))
    assert trains(small_model("pamnet"))
    assert trains(small_model("dimenet++"))
    assert trains_by_kernel(model, config_of())
    assert not trains_by_kernel(model, config_of(lkm_teacher="error"))
    with pytest.raises(ConfigError, match="kernels"):
        config_from_table({"data": {"train": "none"}, "run": {"kernels": "yes"}})

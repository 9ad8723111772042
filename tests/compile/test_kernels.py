"""The kernels: their models' numbers for any sizes, and what happens without them."""

import copy
import logging
import pickle
import threading
from dataclasses import replace
from itertools import accumulate

import ase
import numpy as np
import pytest
import torch

from lkm_calc import Graph, LKMCalculator, energy_and_forces, with_zbl
from lkm_calc.compile import protocol
from lkm_calc.compile.kernel_forces import KernelForces, first_atoms
from lkm_calc.compile.kernels import Kernel, ZBLKernel, has_kernel, kernel
from lkm_calc.potential.zbl import hold

from ..potential.test_zbl import CLOSEST, IN_CRYSTAL, pushed_together
from ..support import (
    ROUND_OFF,
    assert_same_numbers,
    crystal,
    graph_of,
    rattled,
    small_model,
    warnings_as_errors,
)
from .test_kernel_build import computes_in_the_ordinary_way
from .test_programs import assert_equal

SIZES = {
    "ace": [
        {},
        {"num_channels": 19, "radial_hidden": 5, "num_radial": 3, "max_ell": 3},
        {"num_channels": 70, "max_ell": 1, "num_interactions": 3, "lkm_tap": "norms"},
        {"num_interactions": 1, "correlation": 1, "num_radial": 1, "envelope_exponent": 3},
        {"correlation": 4, "num_radial": 17, "linear_readouts": True, "lkm_tap": "norms"},
        {"node_dependent": False, "runtime_geometry": False, "cutoff": 2.5},
        {"gated": False, "normalised": False, "correlation": 2},
    ],
    "dimenet++": [
        {},
        # Widths that fill no whole vector, and one that fills several panels.
        {"hidden": 19, "triplet_dim": 5, "basis_dim": 3, "output_dim": 70, "num_radial": 3},
        {"num_blocks": 1, "num_spherical": 1, "num_radial": 1, "envelope_exponent": 3},
        {"num_spherical": 11, "num_radial": 17, "lkm_tap": "head"},
        {"num_before_skip": 0, "num_after_skip": 0, "num_output_dense": 0, "lkm_tap": "head"},
        {"num_before_skip": 2, "num_after_skip": 1, "num_output_dense": 2, "cutoff": 2.5},
    ],
    "pamnet": [
        {},
        {"hidden": 19, "num_radial": 3, "num_spherical_radial": 2, "lkm_tap": "global"},
        {"num_layers": 1, "num_spherical": 1, "num_radial": 1, "envelope_exponent": 3},
        {"num_spherical": 20, "num_radial": 17, "num_spherical_radial": 1, "lkm_tap": "local"},
        {"hidden": 70, "num_spherical": 2, "two_hop": False, "lkm_tap": "head"},
        {"num_layers": 3, "cutoff": 2.5, "local_cutoff": 2.5},
        {"local_cutoff": 0.5},  # there are no local edges
    ],
    "mxmnet": [
        {},
        {"hidden": 19, "num_radial": 3, "num_spherical": 3, "num_layers": 3},
        {"hidden": 70, "num_layers": 1, "num_spherical": 1, "num_radial": 1},
        {"num_spherical": 20, "num_radial": 17, "num_spherical_radial": 1, "lkm_tap": "head"},
        {"num_spherical": 2, "envelope_exponent": 3, "cutoff": 2.5, "local_cutoff": 2.5},
        {"hidden": 1, "cutoff": 6.0, "local_cutoff": 1.2},
        {"local_cutoff": 5.0},
    ],
}
CASES = [(name, hypers) for name, cases in SIZES.items() for hypers in cases]
WIDE = {
    "ace": {"num_channels": 64},
    "dimenet++": {"hidden": 128, "num_blocks": 4, "triplet_dim": 64},
    "mxmnet": {"hidden": 128, "num_layers": 6},
    "pamnet": {"hidden": 128, "num_layers": 4},
}
"""The published widths."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tests of this module keep the kernel, which takes the compiler ten seconds."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def _kept(folder, monkeypatch):
    """Let calculators find it there, and take it, faster or not."""
    monkeypatch.setenv("LKM_CACHE", str(folder))
    monkeypatch.setattr(KernelForces, "_is_faster", lambda *arguments: True)


def scattered(atoms=150, seed=0):
    """Return atoms at random, some without neighbours, some with many."""
    rng = np.random.default_rng(seed)
    positions = rng.normal(size=(3 * atoms, 3)) * 6
    kept = [0]
    for k in range(1, len(positions)):
        if np.linalg.norm(positions[kept] - positions[k], axis=1).min() > 0.9:
            kept.append(k)
    kept = kept[:atoms]
    return ase.Atoms(rng.choice([1, 6, 8], len(kept)), positions[kept])


@pytest.mark.parametrize(("name", "hypers"), CASES)
def test_the_kernel_computes_what_the_model_computes(name, hypers, folder):
    model = small_model(name, **hypers)
    compute = Kernel(model, folder)
    for atoms in (rattled(), rattled("H2O")[:1], rattled("H2O")[:2], scattered(), rattled(seed=1)):
        graph = graph_of(atoms, model)
        found, expected = compute(graph), energy_and_forces(model, graph)
        if expected.forces.any():
            assert_equal(found, expected)
        else:
            assert not found.forces.any()
            assert torch.allclose(found.energy, expected.energy, rtol=1e-13)


@pytest.mark.parametrize(("name", "hypers"), CASES)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_gradients_with_respect_to_all_weights(name, hypers, dtype, allowed, folder):
    model = small_model(name, **hypers)
    model.calibrate(0.7, {}, range(1, 20))
    model = model.to(dtype).requires_grad_(True)
    compute = Kernel(model, folder)
    assert {id(w) for w in compute.weights} == {id(w) for w in model.parameters()}
    molecules = [scattered(60), rattled("H2O")[:1], rattled()]
    for structures in (molecules, [rattled("H2O")[:1]], [crystal(seed) for seed in range(2)]):
        graph = Graph.collate([graph_of(atoms, model) for atoms in structures])
        output = model.atom_output(model.prepare(graph))
        torch.manual_seed(0)
        by_energies = torch.randn(len(graph.numbers), dtype=torch.float64)
        by_embeddings = torch.randn_like(torch.stack(output.embeddings))
        for back in (None, by_embeddings):
            total = (by_energies * output.values.double()).sum() * model.scale
            if back is not None:
                total = total + (back * torch.stack(output.embeddings)).double().sum()
            expected = torch.autograd.grad(
                total, compute.weights, retain_graph=True, materialize_grads=True
            )
            found = compute.gradients(graph, graph.edge_vectors(), by_energies, back)
            largest = [exact.abs().max() for exact in expected]
            for one, exact, size in zip(found, expected, largest, strict=True):
                assert (one - exact).abs().max() <= allowed * max(size, max(largest) / 100)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("pbc", [True, [True, False, True]])
def test_periodic_structures_with_stress(name, pbc, folder):
    model = small_model(name)
    graph = Graph.collate([graph_of(crystal(seed, pbc), model) for seed in range(3)])
    found = Kernel(model, folder)(graph, stress=True)
    assert_equal(found, energy_and_forces(model, graph, stress=True))


@pytest.mark.parametrize("name", SIZES)
def test_float32_is_as_good_as_that_of_the_model(name, folder):
    exact = small_model(name, **WIDE[name])
    model = copy.deepcopy(exact).float()
    graph = graph_of(rattled(), exact)
    expected = energy_and_forces(exact, graph).forces
    off, usual = (
        (forces - expected).abs().max()
        for forces in (
            Kernel(model, folder)(graph).forces,
            energy_and_forces(model, graph).forces,
        )
    )
    assert off < 3 * usual + 1e-6


def colliding():
    """Return molecules with pairs held in all but the first, and once nearly on each other."""
    (pressed, _), (struck, _) = pushed_together(rattled(), 4, 6, (0.9, 0.2))
    return [rattled("N2", amplitude=0.0), pressed, struck, rattled(seed=2)]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("local_cutoff", [3.0, 1.0])
def test_a_core_around_the_model(name, local_cutoff, folder):
    hypers = {} if name in ("ace", "dimenet++") else {"local_cutoff": local_cutoff}
    core = with_zbl(small_model(name, **hypers), CLOSEST)
    compute, inner = ZBLKernel(core, folder), Kernel(core.model, folder)
    graphs = [graph_of(atoms, core) for atoms in colliding()]
    together = core.prepare(Graph.collate(graphs))
    lengths = together.edge_vectors().norm(dim=1)
    held = hold(together.edge_vectors(), core.pairs(together, torch.float64)).vectors.norm(dim=1)
    assert ((lengths < 1.0) & (held > 1.0)).any(), "edges are held beyond the shorter local cut-off"
    found = compute(together)
    assert_equal(found, energy_and_forces(core, together))
    alone = [compute(graph).forces for graph in graphs]
    assert torch.equal(found.forces, torch.cat(alone))
    free = [torch.equal(inner(g).forces, forces) for g, forces in zip(graphs, alone, strict=True)]
    assert free == [True, False, False, False]


@pytest.mark.parametrize("name", SIZES)
def test_a_core_in_periodic_structures_with_stress(name, folder):
    core = with_zbl(small_model(name), IN_CRYSTAL)
    graph = Graph.collate([graph_of(crystal(seed), core) for seed in range(3)])
    expected = energy_and_forces(core, graph, stress=True)
    assert_equal(ZBLKernel(core, folder)(graph, stress=True), expected)


@pytest.mark.parametrize("name", SIZES)
def test_a_core_in_float32(name, folder):
    exact = with_zbl(small_model(name), CLOSEST)
    core = copy.deepcopy(exact).float()
    for atoms in colliding():
        graph = graph_of(atoms, core)
        expected = energy_and_forces(exact, graph).forces
        usual = (energy_and_forces(core, graph).forces - expected).abs().max() + 1e-6
        assert (ZBLKernel(core, folder)(graph).forces - expected).abs().max() < 3 * usual


@pytest.mark.parametrize("name", SIZES)
def test_a_core_that_nothing_meets_changes_no_bit(name, folder):
    core = with_zbl(small_model(name), {}).float()
    graph = graph_of(crystal(), core)
    expected = Kernel(core.model, folder)(graph, stress=True)
    assert_equal(ZBLKernel(core, folder)(graph, stress=True), expected, 1e-300)


def test_activations_far_from_zero(folder):
    """Where exp overflows or vanishes there is neither nan nor a wrong slope."""
    model = small_model()
    with torch.no_grad():
        for layer in model.interactions:
            layer.dense.bias.uniform_(-2000, 2000)
            layer.from_ji.bias.uniform_(-120, 120)
    for dtype, tolerance in ((torch.float64, ROUND_OFF), (torch.float32, 1e-4)):
        model.to(dtype)
        graph = graph_of(rattled(), model)
        assert_equal(Kernel(model, folder)(graph), energy_and_forces(model, graph), tolerance)


def test_scores_far_from_zero(folder):
    """Where a softmax leaves one value alone, and where exp would overflow."""
    model = small_model("pamnet")
    with torch.no_grad():
        for head in model.heads:
            head.score.weight.mul_(200)
    for dtype, tolerance in ((torch.float64, ROUND_OFF), (torch.float32, 1e-4)):
        model.to(dtype)
        graph = graph_of(rattled(), model)
        assert_equal(Kernel(model, folder)(graph), energy_and_forces(model, graph), tolerance)


@pytest.mark.parametrize("name", SIZES)
def test_a_structure_has_the_same_bits_alone_and_in_a_batch_and_with_threads(name, folder):
    model = small_model(name).float()
    compute = Kernel(model, folder)
    graphs = [graph_of(atoms, model) for atoms in (scattered(400), rattled(), rattled("H2O"))]
    together = compute(Graph.collate(graphs))
    assert together.energy.tolist() == [compute(graph).energy.item() for graph in graphs]
    alone = torch.cat([compute(graph).forces for graph in graphs])
    assert torch.equal(together.forces, alone)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert kernel.threads_worth(graphs[0].edge_index.shape[1]) == 2
        assert torch.equal(compute(Graph.collate(graphs)).forces, alone)
    finally:
        torch.set_num_threads(before)


def test_results_are_their_own(folder):
    model = small_model()
    compute = Kernel(model, folder)
    first = compute(graph_of(rattled(), model))
    before = copy.deepcopy(first)
    compute(graph_of(rattled(seed=1), model))
    assert_equal(first, before, 1e-300)


def test_calls_from_several_threads_at_once(folder):
    model = small_model()
    compute = Kernel(model, folder)
    graphs = [graph_of(rattled(seed=k), model) for k in (0, 1)]
    expected, found = [compute(graph).forces for graph in graphs], [[], []]
    workers = [
        threading.Thread(
            target=lambda k=k: found[k].extend(compute(graphs[k]).forces for _ in range(50))
        )
        for k in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in (0, 1):
        assert len(found[k]) == 50
        assert all(torch.equal(forces, expected[k]) for forces in found[k])


@pytest.mark.parametrize("name", SIZES)
def test_edges_out_of_order_are_refused(name, folder):
    model = small_model(name)
    graph = graph_of(rattled(), model)
    turned = replace(graph, edge_index=graph.edge_index.flip(1))
    with pytest.raises(ValueError, match="not sorted by target"):
        Kernel(model, folder)(turned)


def test_only_models_that_it_is_written_for():
    assert has_kernel(small_model())
    assert has_kernel(small_model("mxmnet"))
    assert has_kernel(small_model("pamnet"))
    assert not has_kernel(small_model().half())
    wrapped = with_zbl(small_model("mxmnet"), {"H-H": 0.5})
    assert not has_kernel(wrapped)
    with pytest.raises(ValueError, match=r"no kernel for mxmnet\+zbl"):
        Kernel(wrapped)


def test_the_first_atoms_of_a_graph():
    model = small_model()
    graph = Graph.collate([graph_of(crystal(), model), graph_of(crystal(1), model)])
    for atoms in (3, 6):
        part = first_atoms(graph, atoms)
        assert part.n_graphs == 1 + atoms // 4
        assert torch.equal(part.edge_index[:, part.reverse], part.edge_index.flip(0))
        assert part.edge_vectors().add(part.edge_vectors()[part.reverse]).abs().max() < 1e-12
        kept = (graph.edge_index < atoms).all(0)
        assert torch.equal(part.edge_vectors(), graph.edge_vectors()[kept])
    assert first_atoms(graph, 8) is graph


@pytest.mark.usefixtures("_kept")
@pytest.mark.parametrize("core", [False, True])
def test_the_calculator_takes_it_for_one_structure_and_for_many(core):
    model = with_zbl(small_model(), CLOSEST) if core else small_model()
    quick, plain = LKMCalculator(model, "cpu", compile=True), LKMCalculator(model, "cpu")
    structures = [rattled(), rattled("H2O"), rattled(seed=1), crystal()]
    for atoms in structures:
        quick.calculate(atoms)
        plain.calculate(atoms)
        assert not quick.ordinary
        assert_same_numbers(quick, plain)
    for found, expected in zip(
        quick.evaluate(structures, batch_size=3), plain.evaluate(structures), strict=True
    ):
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(found["forces"], expected["forces"], atol=1e-9)
    assert quick._committee.force_functions[0].used


@pytest.mark.usefixtures("_kept")
@pytest.mark.parametrize("way", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_load_their_own(way):
    forces = KernelForces(small_model())
    graph = graph_of(rattled(), forces.model)
    expected = forces(graph).forces
    other = way(forces)
    del forces
    assert torch.equal(other(graph).forces, expected)


def test_one_that_computes_something_else_is_not_used(folder, monkeypatch):
    inner = Kernel.__call__

    def wrong(self, graph, stress=False):
        found = inner(self, graph, stress)
        return found._replace(forces=found.forces + 1)

    monkeypatch.setattr(Kernel, "__call__", wrong)
    computes_in_the_ordinary_way("compiled forces are off by", small_model(), folder=folder)


def test_one_that_is_slower_is_not_used(folder, monkeypatch, caplog):
    monkeypatch.setattr(protocol.time, "perf_counter", iter(accumulate([2.0, 1.0] * 20)).__next__)
    forces = KernelForces(small_model(), folder)
    with caplog.at_level(logging.WARNING), warnings_as_errors():
        forces(graph_of(rattled(), forces.model))
    assert not forces.used
    assert "Computing 9 atoms without the compiled program" in caplog.text


@pytest.mark.usefixtures("_kept")
def test_too_little_memory_is_told_of(monkeypatch):
    calculator = LKMCalculator(small_model(), "cpu", compile=True)
    calculator.calculate(rattled())
    monkeypatch.setattr(
        calculator._committee.force_functions[0].kernel, "_run", lambda *arguments: 1
    )
    with pytest.raises(MemoryError, match="72 pairs within 5 Å do not fit into the memory"):
        calculator.calculate(rattled(seed=1))

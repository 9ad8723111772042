"""The physics battery: what holds for every architecture in MODELS, in float64.

Gradients against finite differences, continuity at every cut-off, symmetries, periodicity,
additivity, and the arrangements at which formulas with angles or inverse distances break down.
"""

import copy
from dataclasses import replace
from itertools import pairwise

import ase
import numpy as np
import pytest
import torch
from ase.build import molecule

from benchmarks.published import with_published_envelope, with_published_features
from lkm_calc import MODELS, Graph, energy_and_forces

from . import support
from .support import (
    FINITE_DIFFERENCE,
    ROUND_OFF,
    central_difference,
    crystal,
    graph_of,
    numerical_forces,
    rattled,
    relative_error,
    small_model,
)

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(autouse=True, params=DEVICES)
def device(request, monkeypatch):
    monkeypatch.setattr(support, "device", request.param)


models = pytest.mark.parametrize("name", sorted(MODELS))


MOLECULES = {
    "rattled ethanol": rattled(),
    "C": ase.Atoms("C"),
    "two atoms": ase.Atoms("CO", [[0, 0, 0], [1.1, 0, 0]]),
    "two atoms apart": ase.Atoms("CO", [[0, 0, 0], [80.0, 0, 0]]),
    "CO2": molecule("CO2"),
    "HCN": molecule("HCN"),
    "C2H2": molecule("C2H2"),
    "C6H6": molecule("C6H6"),
    "H2O at 1e-3 Å": molecule("H2O")
    + ase.Atoms("H", [molecule("H2O").positions[0] + [0, 0, 1e-3]]),
}
"""Structures at which energy, forces and second derivatives must be finite."""

CELLS = {
    "crystal": crystal(),
    "slab": crystal(pbc=[True, False, True]),
    "chain": crystal(pbc=[False, True, False]),
}
"""Periodic in three, two and one directions, smaller than the cut-off."""


def by_name(structures):
    return pytest.mark.parametrize("atoms", structures.values(), ids=structures.keys())


def energy_of(model, graph):
    """Return the energy as a function of the positions, edges kept."""
    return lambda positions: model(replace(graph, positions=positions)).energy.sum()


@models
@by_name({"molecule": rattled(), **CELLS})
def test_forces_are_minus_the_gradient(name, atoms):
    model = small_model(name)
    forces = energy_and_forces(model, graph_of(atoms, model)).forces
    assert relative_error(forces, numerical_forces(model, atoms)) < FINITE_DIFFERENCE


@models
@by_name(CELLS)
def test_stress_is_the_strain_derivative(name, atoms):
    model = small_model(name)
    stress = energy_and_forces(model, graph_of(atoms, model), stress=True).stress[0]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for a, b in np.ndindex(3, 3):

        def energy(size, a=a, b=b):
            strain = np.eye(3)
            strain[a, b] += size / 2
            strain[b, a] += size / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            return model(graph_of(strained, model)).energy.item()

        expected[a, b] = central_difference(energy) / atoms.get_volume()
    assert torch.equal(stress, stress.T)
    assert relative_error(stress, expected) < FINITE_DIFFERENCE


@models
@by_name({"H2O": rattled("H2O"), "CO2": molecule("CO2")})
def test_second_derivatives(name, atoms):
    model = small_model(name)
    graph = graph_of(atoms, model)
    positions = graph.positions.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(energy_of(model, graph), (positions,))


@models
@by_name(MOLECULES)
def test_energy_forces_and_second_derivatives_are_finite(name, atoms):
    model = small_model(name)
    graph = graph_of(atoms, model)
    out = energy_and_forces(model, graph)
    hessian = torch.autograd.functional.hessian(energy_of(model, graph), graph.positions)
    for values in (out.energy, out.forces, hessian):
        assert torch.isfinite(values).all()


@models
@by_name(MOLECULES)
def test_force_training_is_finite(name, atoms):
    model = small_model(name)
    out = energy_and_forces(model, graph_of(atoms, model), create_graph=True)
    (out.energy.sum() + out.forces.square().sum()).backward()
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@models
@pytest.mark.parametrize("atoms", [MOLECULES["C"], MOLECULES["two atoms apart"]])
def test_no_forces_on_atoms_alone(name, atoms):
    model = small_model(name)
    assert not energy_and_forces(model, graph_of(atoms, model)).forces.any()


@models
def test_rigid_motions_and_reflections(name):
    model, atoms = small_model(name), rattled()
    out = energy_and_forces(model, graph_of(atoms, model))
    matrix, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    for orthogonal in (matrix, -matrix):  # one of the two is a reflection
        moved = atoms.copy()
        moved.positions = atoms.positions @ orthogonal.T + [3.0, -1.0, 20.0]
        turned = energy_and_forces(model, graph_of(moved, model))
        assert relative_error(turned.energy, out.energy) < ROUND_OFF
        expected = out.forces.cpu() @ torch.from_numpy(orthogonal.T.copy())
        assert relative_error(turned.forces, expected) < ROUND_OFF


@models
def test_permutation(name):
    model, atoms = small_model(name), rattled()
    out = energy_and_forces(model, graph_of(atoms, model))
    order = np.random.default_rng(0).permutation(len(atoms))
    permuted = energy_and_forces(model, graph_of(atoms[order], model))
    assert relative_error(permuted.energy, out.energy) < ROUND_OFF
    assert relative_error(permuted.forces, out.forces[order]) < ROUND_OFF


@models
def test_a_batch_equals_its_members(name):
    model = small_model(name)
    structures = [rattled(), crystal(), rattled("H2O"), ase.Atoms("C"), rattled("C6H6")]
    graphs = [graph_of(atoms, model) for atoms in structures]
    batch = energy_and_forces(model, Graph.collate(graphs))
    singles = [energy_and_forces(model, graph) for graph in graphs]
    assert relative_error(batch.energy, torch.cat([s.energy for s in singles])) < ROUND_OFF
    assert relative_error(batch.forces, torch.cat([s.forces for s in singles])) < ROUND_OFF
    for layer, members in zip(
        batch.embeddings, zip(*(s.embeddings for s in singles), strict=True), strict=True
    ):
        assert relative_error(layer, torch.cat(members)) < ROUND_OFF


@models
def test_distant_molecules_do_not_feel_each_other(name):
    model = small_model(name)
    one, other = rattled(), rattled("H2O", seed=1)
    other.positions += [100.0, 0, 0]
    graph = graph_of(one + other, model)
    both = energy_and_forces(model, graph)
    parts = [energy_and_forces(model, graph_of(part, model)) for part in (one, other)]
    assert relative_error(both.energy, parts[0].energy + parts[1].energy) < ROUND_OFF
    assert relative_error(both.forces, torch.cat([p.forces for p in parts])) < ROUND_OFF
    positions = graph.positions.clone().requires_grad_()
    energies = model(replace(graph, positions=positions)).atom_energies
    (gradient,) = torch.autograd.grad(energies[: len(one)].sum(), positions)
    assert gradient[: len(one)].any()
    assert not gradient[len(one) :].any()


@models
@by_name(CELLS)
def test_a_supercell_is_so_many_cells(name, atoms):
    model = small_model(name)
    repeats = np.where(atoms.pbc, [2, 1, 2], 1) if atoms.pbc[[0, 2]].any() else np.array([1, 3, 1])
    out = energy_and_forces(model, graph_of(atoms, model), stress=True)
    larger = energy_and_forces(model, graph_of(atoms * repeats, model), stress=True)
    assert relative_error(larger.energy, repeats.prod() * out.energy) < ROUND_OFF
    assert relative_error(larger.forces[: len(atoms)], out.forces) < ROUND_OFF
    assert relative_error(larger.stress, out.stress) < ROUND_OFF


@models
@by_name(CELLS)
def test_wrapped_positions_give_the_same(name, atoms):
    model = small_model(name)
    out = energy_and_forces(model, graph_of(atoms, model))
    shifts = np.array([[1, 0, 0], [0, -2, 1], [0, 0, 0], [3, 1, 0]]) * atoms.pbc
    assert shifts.any()
    moved = atoms.copy()
    moved.positions += shifts @ atoms.cell
    unwrapped = energy_and_forces(model, graph_of(moved, model))
    assert relative_error(unwrapped.energy, out.energy) < ROUND_OFF
    assert relative_error(unwrapped.forces, out.forces) < ROUND_OFF


@models
@by_name({"molecule": rattled(), "crystal": crystal()})
def test_order_of_the_edges_does_not_matter(name, atoms):
    model = small_model(name)
    graph = graph_of(atoms, model)
    edges = len(graph.reverse)
    shuffle = torch.randperm(edges, generator=torch.Generator().manual_seed(0))
    expected = energy_and_forces(model, graph)
    for order in (torch.arange(edges).flip(0), shuffle):
        place = torch.empty_like(order)
        place[order] = torch.arange(edges)
        reordered = replace(
            graph,
            edge_index=graph.edge_index[:, order],
            reverse=place[graph.reverse[order].cpu()].to(graph.reverse.device),
            shifts=None if graph.shifts is None else graph.shifts[order],
            slot=None,  # to be counted anew
        )
        found = energy_and_forces(model, reordered)
        assert relative_error(found.energy, expected.energy) < ROUND_OFF
        assert relative_error(found.forces, expected.forces) < ROUND_OFF


@models
def test_edges_beyond_the_cutoff_change_nothing(name):
    model = small_model(name)
    atoms = molecule("C6H6") + ase.Atoms("O", [[0, 3.0, 4.5]])
    out = energy_and_forces(model, graph_of(atoms, model))
    longer = energy_and_forces(model, Graph.from_atoms(atoms, model.cutoff + 1.5, model.device))
    assert relative_error(longer.energy, out.energy) < ROUND_OFF
    assert relative_error(longer.forces, out.forces) < ROUND_OFF


@models
def test_no_neighbour_is_dropped(name):
    radii = [key for key in small_model(name).hypers if "cutoff" in key]
    model = small_model(name, **dict.fromkeys(radii, 4.0))
    points = np.random.default_rng(0).normal(0, 0.9, (60, 3))
    atoms = ase.Atoms("C60", points)
    graph = graph_of(atoms, model)
    assert torch.bincount(graph.edge_index[1]).max() > 50  # others keep 32
    energies = model(graph).atom_energies
    for far in np.argsort(-np.linalg.norm(points - points[0], axis=1)):
        if np.linalg.norm(points[far] - points[0]) < 3.5:
            break
    moved = atoms.copy()
    moved.positions[far] += 0.01
    assert model(graph_of(moved, model)).atom_energies[0] != energies[0]


def steps_between_samples(model, radius, spacing):
    """Return the largest steps of energy, forces and stiffness as a pair crosses a radius.

    Sixteen samples, half on each side. The stiffness is the derivative of the forces along the
    path.
    """
    water = rattled("H2O")
    direction = np.array([0.36, 0.48, 0.8])
    samples = []
    for k in range(-8, 8):
        atoms = water + ase.Atoms(
            "O", [water.positions[0] + direction * (radius + (k + 0.5) * spacing)]
        )
        out = energy_and_forces(model, graph_of(atoms, model))
        positions = graph_of(atoms, model).positions
        along = torch.zeros_like(positions)
        along[-1] = torch.from_numpy(direction)
        _, stiffness = torch.autograd.functional.hvp(
            energy_of(model, graph_of(atoms, model)), positions, along
        )
        samples.append((out.energy, out.forces, stiffness))
    return [
        max((b - a).abs().max().item() for a, b in pairwise(values))
        for values in zip(*samples, strict=True)
    ]


def roughness(model, radius):
    """Return the ratios of the steps at a spacing of 1e-6 Å to those at 1e-4 Å.

    They are 0.01 for a smooth function and 1 for one with a jump.
    """
    coarse, fine = (steps_between_samples(model, radius, h) for h in (1e-4, 1e-6))
    return [f / c for f, c in zip(fine, coarse, strict=True)]


CUTOFFS = [
    pytest.param(name, key, id=f"{name} {key}")
    for name in sorted(MODELS)
    for key in small_model(name).hypers
    if "cutoff" in key
]
"""Every radius of every architecture."""
TWO_GRAPHS = [p for p in CUTOFFS if "local_cutoff" in small_model(p.values[0]).hypers]
"""Those of MXMNet and PAMNet, whose published formulas are not smooth."""


@pytest.mark.parametrize(("name", "cutoff"), CUTOFFS)
def test_smooth_where_a_pair_crosses_a_cutoff(name, cutoff):
    model = small_model(name)
    assert max(roughness(model, model.hypers[cutoff])) < 0.05


@pytest.mark.parametrize(("name", "cutoff"), TWO_GRAPHS)
def test_control_the_published_features_jump(name, cutoff):
    model = with_published_features(small_model(name))
    energy, forces, _ = roughness(model, model.hypers[cutoff])
    assert energy > 0.5
    assert forces > 0.5


@pytest.mark.parametrize(("name", "cutoff"), TWO_GRAPHS)
def test_control_forces_jump_with_the_published_envelope_alone(name, cutoff):
    model = with_published_envelope(small_model(name))
    energy, forces, _ = roughness(model, model.hypers[cutoff])
    assert energy < 0.05
    assert forces > 0.1


def test_control_a_bias_on_a_gate_of_dimenetpp_makes_the_energy_jump():
    model = small_model("dimenet++")
    for output in model.outputs:
        output.rbf.bias = torch.nn.Parameter(torch.full((16,), 0.1, dtype=torch.float64))
    energy, _, _ = roughness(model, model.cutoff)
    assert energy > 0.5


@models
def test_float32_forces_are_close_to_float64(name):
    model = small_model(name)
    graph = graph_of(rattled(), model)
    exact = energy_and_forces(model, graph).forces
    single = energy_and_forces(copy.deepcopy(model).float(), graph).forces
    assert relative_error(single, exact) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@models
def test_cuda_equals_cpu(name):
    model = small_model(name).cpu()
    graph = Graph.collate([graph_of(rattled(), model), graph_of(crystal(), model)])
    expected = energy_and_forces(model, graph)
    found = energy_and_forces(model.cuda(), graph.to("cuda"))
    assert relative_error(found.forces.cpu(), expected.forces) < 1e-8

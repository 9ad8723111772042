"""The energy's gradients: finite differences, batches, symmetry, strain."""

import ase
import numpy as np
import pytest
import torch
from ase.build import molecule

from lkm_calc import MODELS, Graph, energy_and_forces

from .support import (
    FINITE_DIFFERENCE,
    ROUND_OFF,
    crystal,
    graph_of,
    rattled,
    relative_error,
    small_model,
)

STEP = 1e-4
"""Displacement in Å of the central differences; the error of fourth order differences is h⁴."""

models = pytest.mark.parametrize("name", sorted(MODELS))


def energy_at(model, atoms, positions):
    moved = atoms.copy()
    moved.positions = positions
    return model(graph_of(moved, model)).energy.item()


def numerical_forces(model, atoms):
    """Return −ΔE/Δx by central differences of fourth order, (atoms, 3)."""
    forces = np.zeros((len(atoms), 3))
    for index in np.ndindex(forces.shape):
        shift = np.zeros_like(forces)
        shift[index] = STEP
        e = [energy_at(model, atoms, atoms.positions + k * shift) for k in (-2, -1, 1, 2)]
        forces[index] = -(e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * STEP)
    return torch.from_numpy(forces)


@models
@pytest.mark.parametrize("atoms", [rattled(), crystal()], ids=["molecule", "crystal"])
def test_forces_are_minus_the_gradient(name, atoms):
    model = small_model(name)
    forces = energy_and_forces(model, graph_of(atoms, model)).forces
    assert relative_error(forces, numerical_forces(model, atoms)) < FINITE_DIFFERENCE


@models
def test_stress_is_the_strain_derivative(name):
    model, atoms = small_model(name), crystal()
    stress = energy_and_forces(model, graph_of(atoms, model), stress=True).stress[0]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for a, b in np.ndindex(3, 3):
        energies = []
        for k in (-2, -1, 1, 2):
            strain = np.eye(3)
            strain[a, b] += k * STEP / 2
            strain[b, a] += k * STEP / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            energies.append(model(graph_of(strained, model)).energy.item())
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * STEP)
        expected[a, b] = slope / atoms.get_volume()
    assert torch.equal(stress, stress.T)
    assert relative_error(stress, expected) < FINITE_DIFFERENCE


@models
def test_second_derivatives(name):
    model = small_model(name)
    graph = graph_of(rattled("H2O"), model)

    def energy(positions):
        moved = Graph(**{**vars(graph), "positions": positions})
        return model(moved).energy

    positions = graph.positions.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(energy, (positions,))


@models
@pytest.mark.parametrize("atoms", [molecule("CO2"), molecule("C2H2"), molecule("C6H6")])
def test_collinear_and_planar_hessians_are_finite(name, atoms):
    model = small_model(name)
    graph = graph_of(atoms, model)

    def energy(positions):
        return model(Graph(**{**vars(graph), "positions": positions})).energy.sum()

    hessian = torch.autograd.functional.hessian(energy, graph.positions)
    assert torch.isfinite(hessian).all()


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
        expected = out.forces @ torch.from_numpy(orthogonal.T.copy())
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
    both = energy_and_forces(model, graph_of(one + other, model))
    parts = [energy_and_forces(model, graph_of(part, model)) for part in (one, other)]
    assert relative_error(both.energy, parts[0].energy + parts[1].energy) < ROUND_OFF
    assert relative_error(both.forces, torch.cat([p.forces for p in parts])) < ROUND_OFF


@models
def test_supercell_and_wrapping(name):
    model, atoms = small_model(name), crystal()
    out = energy_and_forces(model, graph_of(atoms, model), stress=True)
    doubled = energy_and_forces(model, graph_of(atoms * (2, 1, 2), model), stress=True)
    assert relative_error(doubled.energy, 4 * out.energy) < ROUND_OFF
    assert relative_error(doubled.stress, out.stress) < ROUND_OFF
    moved = atoms.copy()
    moved.positions += np.array([[1, 0, 0], [0, -2, 1], [0, 0, 0], [3, 1, 0]]) @ atoms.cell
    unwrapped = energy_and_forces(model, graph_of(moved, model))
    assert relative_error(unwrapped.forces, out.forces) < ROUND_OFF


@models
def test_graph_is_kept_only_when_asked_for(name):
    model = small_model(name)
    graph = graph_of(rattled("H2O"), model)
    for keep in (False, True):
        out = energy_and_forces(model, graph, create_graph=keep)
        tensors = [out.energy, out.forces, out.atom_energies, *out.embeddings]
        assert [t.requires_grad for t in tensors] == [keep] * len(tensors)
    assert not graph.positions.requires_grad


def test_stress_needs_a_cell():
    model = small_model()
    with pytest.raises(ValueError, match="no cell"):
        energy_and_forces(model, graph_of(rattled(), model), stress=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@models
def test_cuda_equals_cpu(name):
    model = small_model(name)
    graph = Graph.collate([graph_of(rattled(), model), graph_of(crystal(), model)])
    expected = energy_and_forces(model, graph)
    found = energy_and_forces(model.cuda(), graph.to("cuda"))
    assert relative_error(found.forces.cpu(), expected.forces) < 1e-8

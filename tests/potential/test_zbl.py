"""The repulsive core: its values, its smoothness, and that nothing else changes."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from lkm_calc import MODELS, EnergyModel, LKMCalculator, energy_and_forces
from lkm_calc.compile.padding import Capacity, pad, unpad
from lkm_calc.graph import sum_to
from lkm_calc.models import AtomOutput
from lkm_calc.potential.second_derivatives import hessian
from lkm_calc.potential.zbl import LARGEST, UNKNOWN, faded, held, outer_radii, with_zbl, zbl_energy

from ..embeddings.test_latent import calibrated
from ..support import (
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

LAMMPS = {
    (1, 1, 0.3): 16.53913488,
    (1, 6, 0.5): 26.35697446,
    (6, 8, 0.8): 39.43400576,
    (8, 8, 1.0): 23.29431409,
    (14, 79, 1.2): 68.86584858,
}
"""Energies in eV by Z_i, Z_j and r in Å that LAMMPS of 22 Jul 2025 prints for two atoms with
``units metal`` and ``pair_style zbl 8.0 10.0``; its e²/4πε₀ differs from ASE's by 1e-6."""

CLOSEST = {"H-H": 1.5, "H-C": 1.1, "C-O": 1.4, "C-C": 1.5, "O-H": 1.0}
"""Radii that overlap with the distances of rattled ethanol, for tests of what lies below them."""
IN_CRYSTAL = {"Si-C": 2.4, "Si-O": 2.6, "Si-H": 2.3}
"""Likewise, with the distances of the crystal."""


@pytest.mark.parametrize("pair", LAMMPS)
def test_values_of_lammps(pair):
    z_i, z_j, r = pair
    found = zbl_energy(torch.tensor([z_i]), torch.tensor([z_j]), torch.tensor([r]).double())
    assert found.item() == pytest.approx(LAMMPS[pair], rel=2e-6)


@pytest.mark.parametrize("function", [faded, held])
def test_two_derivatives_are_continuous(function):
    outer = torch.full((4001,), 1.3, dtype=torch.float64)
    r = torch.linspace(0.5, 1.4, 4001, dtype=torch.float64).requires_grad_()
    value = function(r, outer)
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    # Were there a step, it would not shrink with the spacing of 2e-4 Å: bounds of the next one up.
    for derivative, bound in ((value, 3e-3), (first, 1e-2), (second, 0.2)):
        assert derivative.diff().abs().max() < bound


def test_what_the_model_sees():
    r = torch.tensor([0.2, 0.8, 1.0, 1.1], dtype=torch.float64)
    outer = torch.ones(4, dtype=torch.float64)
    assert held(r, outer).tolist() == pytest.approx([0.9, 0.9, 1.0, 1.1])
    assert faded(r / 2, outer)[:3].tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert faded(r, outer)[2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("atoms", [rattled(), crystal()], ids=["molecule", "crystal"])
def test_nothing_changes_beyond_the_radii(name, atoms):
    model = small_model(name)
    core = with_zbl(model, {})
    for dtype in (torch.float64, torch.float32):
        graph = graph_of(atoms, model.to(dtype))
        periodic = graph.cell is not None
        expected = energy_and_forces(model, graph, stress=periodic)
        found = energy_and_forces(core.to(dtype), graph, stress=periodic)
        for a, b in zip(found[:4], expected[:4], strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("atoms", [rattled("CH3OH"), crystal()], ids=["molecule", "crystal"])
def test_forces_are_the_gradient(name, atoms):
    core = with_zbl(small_model(name), CLOSEST | IN_CRYSTAL)
    graph = graph_of(atoms, core)
    found = energy_and_forces(core, graph)
    assert not torch.equal(found.forces, energy_and_forces(core.model, graph).forces)
    assert relative_error(found.forces, numerical_forces(core, atoms)) < FINITE_DIFFERENCE
    assert found.atom_energies.sum().item() == pytest.approx(found.energy.item())
    assert found.forces.sum(0).abs().max() < ROUND_OFF * found.forces.abs().max()


def test_stress_is_the_derivative_by_strain():
    core = with_zbl(small_model(), IN_CRYSTAL)
    atoms = crystal()
    found = energy_and_forces(core, graph_of(atoms, core), stress=True).stress

    def energy(strain):
        strained = atoms.copy()
        strained.set_cell(atoms.cell * [1 + strain, 1, 1], scale_atoms=True)
        return core(graph_of(strained, core)).energy.item()

    expected = central_difference(energy) / atoms.get_volume()
    assert found[0, 0, 0].item() == pytest.approx(expected, rel=FINITE_DIFFERENCE)


def test_second_derivatives_exist_inside():
    core = with_zbl(small_model(), CLOSEST)
    found = hessian(core, graph_of(rattled(), core)).flatten(2).flatten(0, 1)
    assert found.isfinite().all()
    assert relative_error(found, found.T) < ROUND_OFF


def pushed_together(atoms, i, j, distances):
    """Yield copies with two atoms moved along their line, and the force in eV/Å that parts them."""
    line = atoms.positions[j] - atoms.positions[i]
    line /= np.linalg.norm(line)
    middle = atoms.positions[[i, j]].mean(0)
    for distance in distances:
        moved = atoms.copy()
        moved.positions[[i, j]] = middle + np.outer([-0.5, 0.5], line) * distance
        yield moved, line


class Attraction(EnergyModel):
    """Pairs attract with −400 eV exp(−(r / 0.3 Å)²), as models may at short distances."""

    name = "attraction"

    def __init__(self):
        super().__init__(cutoff=3.0, hypers={})
        self.depth = torch.nn.Parameter(torch.tensor(400.0))

    def atom_output(self, graph):
        r = graph.edge_vectors().to(self.dtype).norm(dim=1)
        pairs = -self.depth / 2 * torch.exp(-((r / 0.3) ** 2))
        values = sum_to(pairs, graph.edge_index[1], len(graph.numbers))
        return AtomOutput(values, (values.unsqueeze(1),), (values,))


@pytest.mark.parametrize("pair", [(6, 7), (7, 8)])
def test_atoms_are_kept_apart_where_the_model_attracts_them(pair):
    i, j = pair
    start = molecule("CH3CH2OH")
    assert start.symbols[i] == start.symbols[j] == "H"
    model = Attraction().double()
    core = with_zbl(model, {"H-H": 1.5, "H-C": 1.05, "O-H": 0.9, "C-C": 1.45, "C-O": 1.35})
    repulsion = {model: [], core: []}
    for of in repulsion:
        calculator = LKMCalculator(of, "cpu", "float64")
        for atoms, line in pushed_together(start, i, j, np.linspace(0.2, 1.2, 11)):
            forces = calculator.evaluate([atoms])[0]["forces"]
            repulsion[of].append((forces[j] - forces[i]) @ line / 2)
    assert min(repulsion[model]) < -1000, "the model alone pulls them together"
    assert min(repulsion[core]) > 0
    assert repulsion[core][1] > 90, "at 0.3 Å, where the nuclei alone push with 101 eV/Å"


def test_evaluate_gives_the_numbers_of_single_calls():
    calculator = LKMCalculator(with_zbl(small_model("pamnet"), CLOSEST), "cpu")
    structures = [rattled(seed=k) for k in range(3)]
    for atoms, together in zip(structures, calculator.evaluate(structures), strict=True):
        alone = calculator.evaluate([atoms])[0]
        assert np.abs(alone["forces"] - together["forces"]).max() < 1e-9
        assert alone["energy"] == pytest.approx(together["energy"], abs=1e-9)


def test_rows_that_stand_for_nothing_change_nothing():
    core = with_zbl(small_model("pamnet"), CLOSEST)
    graph = core.prepare(graph_of(rattled(), core))
    padded = energy_and_forces(core, pad(graph, Capacity.of(graph, spare=0.5), core.cutoff))
    found = unpad(padded, 1, len(graph.numbers))
    expected = energy_and_forces(core, graph)
    assert relative_error(found.forces, expected.forces) < ROUND_OFF
    assert found.energy.item() == pytest.approx(expected.energy.item(), rel=ROUND_OFF)


def test_radii():
    table = outer_radii({"H-C": 0.95, "O-O": 3.4}, cutoff=5.0)
    assert table[6, 1] == table[1, 6] == 0.95
    assert table[8, 8] == pytest.approx(LARGEST * 2 * 0.66)
    assert table[1, 1] == pytest.approx(UNKNOWN * 2 * 0.31)
    assert outer_radii({"H-C": 0.95}, cutoff=0.5).max() == 0.5


@pytest.mark.parametrize("closest", [{"H": 1.0}, {"H-Xx": 1.0}, {"H-H": 0.0}, {"H-H": np.nan}])
def test_bad_distances_are_refused(closest):
    with pytest.raises(ValueError, match="closest"):
        with_zbl(small_model(), closest)


def test_radii_of_the_calibration():
    assert with_zbl(calibrated()).outer[6, 1] == 1.0


def test_without_a_calibration_one_is_told():
    with pytest.warns(UserWarning, match="closest distances"):
        core = with_zbl(small_model())
    assert torch.equal(core.outer, outer_radii({}, core.cutoff))


def test_it_is_a_model_with_the_properties_of_its_own():
    model = small_model()
    model.calibrate(0.5, {1: -13.0, 6: -1000.0, 8: -2000.0}, [1, 6, 8])
    core = with_zbl(model, CLOSEST)
    assert core.elements == ("H", "C", "O")
    graph = graph_of(rattled(), core)
    before = core(graph).energy
    model.calibrate(0.5, {1: -14.0, 6: -1000.0, 8: -2000.0}, [1, 6, 8])
    assert core(graph).energy.item() == pytest.approx(before.item() - 6)
    with pytest.raises(ValueError, match="already"):
        with_zbl(core)


def test_two_atoms_beyond_the_radius_and_below():
    core = with_zbl(small_model(), {"H-H": 1.0})
    graph = graph_of(Atoms("H2", [[0, 0, 0], [0, 0, 0.4]]), core)
    model_at = graph_of(Atoms("H2", [[0, 0, 0], [0, 0, 0.9]]), core)
    nuclei = zbl_energy(*torch.tensor([[1], [1]]), torch.tensor([0.4]).double())
    expected = core.model(model_at).energy + nuclei
    assert core(graph).energy.item() == pytest.approx(expected.item())

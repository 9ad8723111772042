"""Second derivatives against differences of forces, and the vibrations made from them."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import BFGS

from lkm_calc import MODELS, Graph, LKMCalculator, energy_and_forces
from lkm_calc.models import dimenetpp
from lkm_calc.nn import angular
from lkm_calc.potential.second_derivatives import hessian, hessian_of_atoms, vibrations

from ..support import (
    FINITE_DIFFERENCE,
    ROUND_OFF,
    central_difference,
    crystal,
    graph_of,
    rattled,
    relative_error,
    small_model,
)


def numerical_hessian(model, atoms):
    """Return −ΔF/Δx, neighbour list built anew at every displacement, (atoms, 3, atoms, 3)."""
    rows = []
    for index in np.ndindex(len(atoms), 3):

        def forces(displacement, index=index):
            moved = atoms.copy()
            moved.positions[index] += displacement
            return energy_and_forces(model, graph_of(moved, model)).forces

        rows.append(-central_difference(forces))
    return torch.stack(rows).view(len(atoms), 3, len(atoms), 3)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("atoms", [rattled("H2O"), crystal()], ids=["molecule", "crystal"])
def test_finite_differences_of_forces(name, atoms):
    model = small_model(name)
    found = hessian(model, graph_of(atoms, model))
    assert relative_error(found, numerical_hessian(model, atoms)) < FINITE_DIFFERENCE


@pytest.mark.parametrize("name", MODELS)
def test_symmetric_blind_to_translation_and_to_rows(name):
    model = small_model(name)
    graph = graph_of(rattled(), model)
    found = hessian(model, graph)
    assert relative_error(found, found.permute(2, 3, 0, 1)) < ROUND_OFF
    assert found.sum(2).abs().max() < ROUND_OFF * found.abs().max()
    for rows in (1, 100):
        assert relative_error(hessian(model, graph, rows), found) < ROUND_OFF


def test_structures_do_not_couple():
    model = small_model("pamnet")
    graphs = [graph_of(rattled("H2O", seed), model) for seed in (0, 1)]
    both = hessian(model, Graph.collate(graphs))
    assert both[:3, :, 3:].count_nonzero() == 0
    for part, graph in zip((both[:3, :, :3], both[3:, :, 3:]), graphs, strict=True):
        assert relative_error(part, hessian(model, graph)) < ROUND_OFF


def test_interactions_calculated_again_in_blocks(monkeypatch):
    """Large structures take another way through the angular sums, which vmap must pass too."""
    model = small_model()
    graph = graph_of(rattled(), model)
    monkeypatch.setattr(angular, "FEW_NEIGHBOURS", 1)
    expected = hessian(model, graph)
    monkeypatch.setattr(angular, "MANY_ROWS", 1)
    monkeypatch.setattr(angular, "BLOCK_ROWS", 20)
    calls = []
    checkpoint = dimenetpp.checkpoint
    monkeypatch.setattr(
        dimenetpp, "checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k)
    )
    assert relative_error(hessian(model, graph), expected) < ROUND_OFF
    assert calls


def test_gradients_may_be_off_where_it_is_called():
    model = small_model().requires_grad_(False)
    expected = hessian_of_atoms([model], rattled("H2O"))
    with torch.inference_mode():
        assert np.array_equal(hessian_of_atoms([model], rattled("H2O")), expected)


def test_a_lone_atom_feels_nothing():
    model = small_model()
    assert hessian(model, graph_of(Atoms("H"), model)).count_nonzero() == 0


def test_rows_must_be_positive():
    model = small_model()
    with pytest.raises(ValueError, match="rows is 0"):
        hessian(model, graph_of(rattled("H2O"), model), rows=0)


def test_mean_of_a_committee_in_the_unit_of_forces():
    models = [small_model(seed=seed) for seed in (0, 1)]
    water = rattled("H2O")
    parts = [hessian_of_atoms([model], water) for model in models]
    np.testing.assert_allclose(hessian_of_atoms(models, water), (parts[0] + parts[1]) / 2)
    assert parts[0].shape == (9, 9)


def test_unknown_elements_are_refused():
    model = small_model()
    model.calibrate(1.0, {}, [1, 6])
    with pytest.raises(ValueError, match="does not support O"):
        hessian_of_atoms([model], rattled("H2O"))


@pytest.fixture(scope="module")
def ethanol():
    """Return ethanol relaxed with its bundled model, which it keeps as its calculator."""
    atoms = molecule("CH3CH2OH")
    atoms.calc = LKMCalculator("rmd17-ethanol", "cpu", "float64")
    assert BFGS(atoms, logfile=None).run(fmax=1e-4, steps=100)
    return atoms


def test_frequencies_of_ethanol(ethanol):
    found = vibrations(ethanol)
    wavenumbers = found.get_frequencies()
    assert np.abs(wavenumbers[:6]).max() < 5, "translation and rotation"
    assert np.abs(wavenumbers[6:].imag).max() == 0, "a minimum"
    # O-H stretch of PBE about 3700, five C-H stretches about 2900 to 3100, then a gap to 1500.
    assert 3650 < wavenumbers[-1].real < 3760
    assert ((wavenumbers.real > 2850) & (wavenumbers.real < 3100)).sum() == 5
    assert wavenumbers[-7].real < 1500
    assert found.get_zero_point_energy() == pytest.approx(2.10, abs=0.02)


def test_weights_in_float32_cost_hundredths_of_a_wavenumber(ethanol):
    exact = vibrations(ethanol).get_frequencies()[6:]
    single = ethanol.copy()
    single.calc = LKMCalculator("rmd17-ethanol", "cpu", "float32")
    assert 0 < np.abs(vibrations(single).get_frequencies()[6:] - exact).max() < 0.02


def test_fixed_atoms_are_left_out(ethanol):
    fixed = ethanol.copy()
    fixed.calc = ethanol.calc
    fixed.set_constraint(FixAtoms([0, 1]))
    found = vibrations(fixed)
    whole = vibrations(ethanol).get_hessian()
    assert found.get_indices().tolist() == list(range(2, 9))
    np.testing.assert_allclose(found.get_hessian(), whole[2:, :, 2:], atol=1e-12)
    fixed.set_constraint(FixAtoms(range(9)))
    with pytest.raises(ValueError, match="All atoms are fixed"):
        vibrations(fixed)


def test_a_structure_that_is_not_relaxed_is_refused(ethanol):
    moved = ethanol.copy()
    moved.calc = ethanol.calc
    moved.positions[3] += [0.0, 0.0, 0.05]
    with pytest.raises(ValueError, match=r"force on atom 2 is .* eV/Å.*fmax = 0.01.*Relax"):
        vibrations(moved)
    assert len(vibrations(moved, fmax=np.inf).get_frequencies()) == 27


def test_calculators_without_a_hessian_are_refused():
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]], calculator=EMT())
    with pytest.raises(ValueError, match="EMT, which has no get_hessian"):
        vibrations(atoms)

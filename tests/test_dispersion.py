"""D3 on top of a model: sums, and what ASE asks of a calculator."""

import ase
import numpy as np
import pytest
from ase.build import molecule

from lkm_calc import LKMCalculator

from .support import central_difference, crystal, rattled, small_model

pytest.importorskip("dftd3", reason="dftd3 is not installed (pip install lkm-calc[d3])")

from dftd3.ase import DFTD3

from lkm_calc.dispersion import with_d3


@pytest.fixture
def calculator():
    return LKMCalculator(small_model(), "cpu", "float64")


def test_energy_of_the_correction():
    # Water, TPSS-D3(BJ), as the documentation of dftd3 prints it.
    water = molecule("H2O")
    found = with_d3(LKMCalculator(small_model(), "cpu"), "TPSS").correction
    assert found.get_property("energy", water) == pytest.approx(-0.011441640787, abs=1e-8)


@pytest.mark.parametrize("atoms", [rattled(), crystal()], ids=["molecule", "crystal"])
def test_results_are_sums(calculator, atoms):
    both = with_d3(calculator, "PBE")
    names = ["energy", "forces"] + ["stress"] * bool(atoms.pbc.any())
    for name in names:
        alone = DFTD3(method="PBE", damping="d3bj").get_property(name, atoms)
        expected = calculator.get_property(name, atoms) + alone
        assert np.abs(alone).max() > 1e-4, "else nothing is tested"
        np.testing.assert_allclose(both.get_property(name, atoms), expected, rtol=0, atol=1e-12)


def test_ase_finds_all_that_it_asks_for(calculator):
    atoms = rattled()
    atoms.calc = with_d3(calculator, "PBE")
    energy = atoms.get_potential_energy(force_consistent=True)
    assert energy == atoms.get_potential_energy()
    found = set(atoms.get_properties(["energy", "forces"]))
    assert found == {"energy", "free_energy", "forces", "natoms"}
    with pytest.raises(NotImplementedError):
        atoms.get_stress()


def test_forces_and_stress_are_derivatives(calculator):
    atoms = crystal()
    atoms.calc = with_d3(calculator, "PBE")
    forces, stress = atoms.get_forces(), atoms.get_stress()

    def by_moving(step):
        moved = atoms.copy()
        moved.calc = atoms.calc
        moved.positions[1, 2] += step
        return moved.get_potential_energy()

    def by_strain(step):
        strained = atoms.copy()
        strained.calc = atoms.calc
        strained.set_cell(atoms.cell * [1 + step, 1, 1], scale_atoms=True)
        return strained.get_potential_energy()

    assert forces[1, 2] == pytest.approx(-central_difference(by_moving), abs=1e-5)
    assert stress[0] == pytest.approx(central_difference(by_strain) / atoms.get_volume(), abs=1e-5)


def test_structures_that_repeat_in_two_directions(calculator):
    slab = ase.Atoms("OH", [[0, 0, 0], [0.3, 0.2, 0.9]], cell=[4, 4, 0], pbc=[True, True, False])
    slab.calc = with_d3(calculator, "PBE")
    thick = slab.copy()
    thick.cell[2, 2] = 50
    thick.calc = slab.calc
    flat = slab.get_potential_energy()
    assert "stress" not in slab.calc.results
    assert thick.get_potential_energy() == pytest.approx(flat, abs=1e-9)
    assert "stress" in slab.calc.results


def test_hessian_is_the_derivative_of_the_forces(calculator):
    atoms = rattled("H2O")
    both = with_d3(calculator, "PBE")
    found = both.get_hessian(atoms)
    assert np.abs(found - calculator.get_hessian(atoms)).max() > 1e-3

    def force(step):
        moved = atoms.copy()
        moved.positions[1, 2] += step
        return both.get_property("forces", moved).ravel()

    np.testing.assert_allclose(found[5], -central_difference(force), rtol=0, atol=1e-5)


def test_extras_are_those_of_the_model(calculator):
    atoms = rattled()
    atoms.calc = with_d3(calculator, "PBE")
    atoms.get_forces()
    assert atoms.calc.extras is calculator.extras


def test_unknown_functional(calculator):
    with pytest.raises(ValueError, match="'rubbish'.*No entry"):
        with_d3(calculator, "rubbish")

"""ASE's conventions of calculators, one test each."""

import json
import pickle

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.io.jsonio import encode
from ase.outputs import all_outputs

from lkm_calc import LKMCalculator, save_model
from lkm_calc.committee import Committee

from .support import crystal, rattled, small_model


@pytest.fixture
def calc():
    return LKMCalculator(small_model(), device="cpu")


@pytest.fixture
def calls(monkeypatch):
    """Count the computations of structures."""
    found, inner = [], Committee.__call__

    def counted(self, structures, *arguments):
        found.append(len(structures))
        return inner(self, structures, *arguments)

    monkeypatch.setattr(Committee, "__call__", counted)
    return found


def test_every_result_has_ases_type_and_unit(calc):
    atoms = rattled()
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    assert type(energy) is float
    assert atoms.get_potential_energy(force_consistent=True) == energy
    assert atoms.get_forces().shape == (9, 3)
    assert atoms.get_forces().dtype == np.float64
    assert atoms.get_potential_energies().sum() == pytest.approx(energy, abs=1e-10)
    properties = atoms.get_properties(["energy", "forces", "energies", "free_energy"])
    assert properties["energy"] == energy


def test_computes_once_for_all_properties(calc, calls):
    atoms = crystal()
    atoms.calc = calc
    atoms.get_potential_energy()
    assert not calc.calculation_required(atoms, calc.implemented_properties)
    atoms.get_forces()
    atoms.get_potential_energies()
    atoms.get_stress()
    assert len(calls) == 1


CHANGES = {
    "positions": lambda atoms: atoms.positions.__setitem__((0, 0), atoms.positions[0, 0] + 1e-12),
    "numbers": lambda atoms: atoms.numbers.__setitem__(0, 7),
    "cell": lambda atoms: atoms.set_cell(atoms.cell * 1.01, scale_atoms=False),
    "pbc": lambda atoms: atoms.set_pbc([True, True, False]),
    "an atom less": lambda atoms: atoms.__delitem__(0),
    "order": lambda atoms: atoms.set_atomic_numbers(atoms.numbers[::-1]),
}
"""What a model reads."""

SILENT = {
    "info": lambda atoms: atoms.info.update(charge=1),
    "charges": lambda atoms: atoms.set_initial_charges(np.ones(len(atoms))),
    "magmoms": lambda atoms: atoms.set_initial_magnetic_moments(np.ones(len(atoms))),
    "momenta": lambda atoms: atoms.set_momenta(np.ones((len(atoms), 3))),
    "masses": lambda atoms: atoms.set_masses(np.ones(len(atoms))),
    "tags": lambda atoms: atoms.set_tags(1),
    "constraint": lambda atoms: atoms.set_constraint(FixAtoms([0])),
    "another array": lambda atoms: atoms.set_array("shade", np.ones(len(atoms))),
}
"""What it does not read."""


@pytest.mark.parametrize("change", CHANGES | SILENT)
def test_computes_anew_if_and_only_if_something_changed_that_the_model_reads(change, calls):
    atoms = crystal()
    atoms.calc = calc = LKMCalculator(small_model())
    before = atoms.get_forces()
    (CHANGES | SILENT)[change](atoms)
    assert calc.calculation_required(atoms, ["forces"]) == (change in CHANGES)
    after = atoms.get_forces(apply_constraint=False)
    assert len(calls) == 1 + (change in CHANGES)
    fresh = LKMCalculator(small_model()).get_forces(atoms)
    assert np.array_equal(after, fresh)
    assert np.array_equal(before, after) == (change in SILENT)


def test_properties_that_are_there_without_a_calculation(calls):
    atoms = rattled()
    atoms.calc = calc = LKMCalculator(small_model())
    assert calc.get_property("energy", atoms, allow_calculation=False) is None
    energy = atoms.get_potential_energy()
    assert calc.get_property("free_energy", atoms, allow_calculation=False) == energy
    assert calc.get_property("energy") == energy
    assert calc.get_property("stress", atoms, allow_calculation=False) is None
    atoms.rattle(0.01)
    assert calc.get_property("energy", atoms, allow_calculation=False) is None
    assert len(calls) == 1
    calc.get_property("energy", atoms)
    calc.reset()
    assert calc.get_property("energy", atoms, allow_calculation=False) is None


def test_names_and_shapes_are_ases(calc):
    assert Calculator.implemented_properties == []
    assert set(calc.implemented_properties) <= all_outputs.keys()
    atoms = crystal()
    atoms.calc = calc
    properties = atoms.get_properties(calc.implemented_properties)
    assert set(calc.implemented_properties) < properties.keys()
    assert properties["natoms"] == 4
    assert np.array_equal(properties["stress"], calc.results["stress"])
    assert all(type(calc.results[name]) is float for name in ("energy", "free_energy"))
    with pytest.raises(PropertyNotImplementedError, match="dipole"):
        atoms.get_dipole_moment()


def test_without_atoms():
    calc = LKMCalculator(small_model())
    with pytest.raises(ValueError, match="without atoms"):
        calc.calculate()
    atoms = rattled("H2O")
    energy = calc.get_potential_energy(atoms)
    assert atoms.calc is None
    atoms.positions += 1.0
    assert calc.get_potential_energy() == energy, "the calculator keeps atoms of its own"
    assert calc.get_atoms().get_potential_energy() == energy


def test_files_hold_the_results(tmp_path):
    for atoms in (rattled(), crystal()):
        atoms.calc = LKMCalculator([small_model(), small_model(seed=1)])
        forces = atoms.get_forces()
        for name in ("atoms.traj", "atoms.extxyz"):
            write(tmp_path / name, atoms)
            found = read(tmp_path / name)
            tolerance = 0 if name == "atoms.traj" else 1e-7  # digits of the text
            assert found.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
            np.testing.assert_allclose(found.get_forces(), forces, atol=tolerance, rtol=0)
            assert ("stress" in found.calc.results) == atoms.pbc.all()
            if atoms.pbc.all():
                np.testing.assert_allclose(found.get_stress(), atoms.get_stress(), atol=tolerance)
    assert read(tmp_path / "atoms.traj").calc.parameters["models"] == ["dimenet++"] * 2


def test_parameters_are_told_and_settled(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(small_model(), path)
    calc = LKMCalculator(path, "cpu", "float32")
    told = {"models": [str(path)], "device": "cpu", "dtype": "float32", "skin": 1.0}
    told |= {"compile": False, "zbl": False, "deterministic": False}
    assert json.loads(encode(calc.todict())) == told
    with pytest.raises(ValueError, match="dtype cannot be changed; create a new"):
        calc.set(dtype="float64")


def test_a_failure_leaves_no_results_of_other_atoms(calls):
    calc = LKMCalculator(small_model())
    calc.calculate(rattled())
    bad = rattled()
    bad.positions[0] = np.inf
    for _ in range(2):
        with pytest.raises(ValueError, match="not finite"):
            calc.calculate(bad)
        assert calc.results == {}
        with pytest.raises(ValueError, match="not finite"):
            calc.get_potential_energy(bad)
    assert np.isfinite(calc.get_potential_energy(rattled()))


def test_what_is_refused_beforehand_leaves_the_results(calls):
    atoms = rattled()
    atoms.calc = LKMCalculator(small_model())
    forces = atoms.get_forces()
    with pytest.raises(PropertyNotImplementedError, match="three cell vectors"):
        atoms.get_stress()
    assert np.array_equal(atoms.get_forces(), forces)
    assert len(calls) == 1


def test_results_are_copies(calc):
    atoms = rattled()
    atoms.calc = calc
    atoms.get_forces()[:] = 0
    assert atoms.get_forces().any()
    first, kept = calc.results, {k: np.copy(v) for k, v in calc.results.items()}
    atoms.rattle(0.05)
    atoms.get_forces()
    assert all(np.array_equal(first[key], kept[key]) for key in kept)


def test_a_calculator_can_be_sent_to_another_process(calc):
    sent = pickle.loads(pickle.dumps(calc))
    assert np.array_equal(sent.get_forces(rattled()), calc.get_forces(rattled()))

"""What programs of users do with a calculator: situations of the field's public bug reports."""

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_stress
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.spacegroup import Spacegroup

from lkm_calc import LKMCalculator
from lkm_calc.commands.evaluate import _error_table, _labelled
from lkm_calc.graph.neighbours import neighbour_list
from lkm_calc.md.simulation import MDSettings, Simulation

from ..support import crystal, rattled, small_model


@pytest.fixture(scope="module")
def calculator():
    return LKMCalculator(small_model(), "cpu")


def boxed(**cell):
    atoms = rattled()
    atoms.set_cell(cell.get("cell", [6.0, 6.5, 7.0]))
    atoms.pbc = cell.get("pbc", True)
    return atoms


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.longdouble),
    ],
    ids=["Fortran order", "negative stride", "big-endian", "long double"],
)
def test_positions_in_any_layout_give_the_same_numbers(calculator, convert):
    atoms, other = rattled(), rattled()
    other.arrays["positions"] = convert(other.positions)
    assert calculator.get_potential_energy(other) == calculator.get_potential_energy(atoms)
    np.testing.assert_array_equal(calculator.get_forces(other), calculator.get_forces(atoms))


def test_whole_and_single_precision_positions_give_forces_in_float64(calculator):
    for dtype in (np.int64, np.float32):
        atoms = molecule("CH3CH2OH")
        atoms.positions = np.rint(atoms.positions * 3)
        expected = calculator.get_potential_energy(atoms)
        atoms.arrays["positions"] = atoms.positions.astype(dtype)
        assert calculator.get_potential_energy(atoms) == expected
        assert calculator.get_forces(atoms).dtype == np.float64


def test_threads_that_share_a_calculator_get_the_numbers_of_their_own_structures():
    calculator = LKMCalculator(small_model(), "cpu")
    structures = [rattled(seed=seed) for seed in range(60)]
    expected = LKMCalculator(small_model(), "cpu").evaluate(structures)

    def computed(atoms):
        atoms = atoms.copy()
        atoms.calc = calculator
        properties = atoms.get_properties(["energy", "forces"])
        return atoms.get_potential_energy(), atoms.get_forces(), properties["energy"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(computed, structures))
    for (energy, forces, again), result in zip(found, expected, strict=True):
        assert energy == again == pytest.approx(result["energy"], abs=1e-9)
        np.testing.assert_allclose(forces, result["forces"], atol=1e-9)


def test_a_calculator_with_its_lock_is_still_copied_and_pickled(calculator):
    atoms = rattled()
    expected = calculator.get_potential_energy(atoms)
    for other in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        assert other.get_potential_energy(rattled(seed=1)) != expected
        assert other.get_potential_energy(atoms) == expected


@pytest.mark.parametrize("edge", [150.0, 240.0, 1000.0, 1e5])
def test_a_molecule_in_a_large_periodic_box_is_the_molecule(calculator, edge):
    atoms, alone = boxed(cell=[edge] * 3), rattled()
    energy = calculator.get_potential_energy(atoms)
    assert energy == pytest.approx(calculator.get_potential_energy(alone), abs=1e-9)


@pytest.mark.parametrize("edge", [300.0, 700.0])
def test_wider_search_cells_find_the_same_pairs_in_the_same_order(edge):
    points = np.random.default_rng(0).uniform(0, 12, (40, 3))
    points[:20] += edge - 6  # across the boundary
    cell = np.array([[edge, 0, 0], [0.4 * edge, edge, 0], [-0.1 * edge, 0.2 * edge, edge]])
    found = neighbour_list(points, 5.0, cell, (True,) * 3)
    assert len(found.slot) > 100
    source, target = found.edge_index
    vectors = points[target] - points[source] + found.shifts @ cell
    shift = np.rint((points[target] - points[source]) @ np.linalg.inv(cell))
    for a in range(40):  # all pairs through the nearest image
        d = points - points[a]
        d -= np.rint(d @ np.linalg.inv(cell)) @ cell
        near = np.flatnonzero((np.linalg.norm(d, axis=1) <= 5.0) & (np.arange(40) != a))
        assert set(source[target == a].tolist()) == set(near.tolist())
    assert np.linalg.norm(vectors, axis=1).max() <= 5.0
    np.testing.assert_array_equal(found.shifts, -shift.astype(int))
    np.testing.assert_array_equal(found.reverse[found.reverse], np.arange(len(source)))
    order = np.lexsort((*found.shifts.T[::-1], source, target))
    np.testing.assert_array_equal(order, np.arange(len(source)))


def test_distant_fragments_are_no_too_large_cell(calculator):
    pair = rattled() + rattled()
    pair.positions[9:] += 500.0
    alone = calculator.get_potential_energy(rattled())
    assert calculator.get_potential_energy(pair) == pytest.approx(2 * alone, abs=1e-8)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        ([[6, 0, 3], [0, 6, 2.5], [0, 0, 0]], (True, True, False)),
        ([[0, 0, 0], [5, 5, 5], [0, 0, 0]], (False, True, False)),
    ],
    ids=["tilted slab", "rotated wire"],
)
def test_unwrapped_atoms_of_slabs_and_wires_change_nothing(calculator, cell, pbc):
    atoms = boxed(cell=cell, pbc=pbc)
    expected = calculator.get_potential_energy(atoms)
    atoms.positions[3] += 5 * atoms.cell.array[1] - 2 * atoms.cell.array[0]
    assert calculator.get_potential_energy(atoms) == pytest.approx(expected, abs=1e-9)


def test_the_stress_of_a_left_handed_cell_has_the_sign_of_the_right_handed_one(calculator):
    atoms = boxed()
    left = boxed(cell=atoms.cell.array[[1, 0, 2]])
    assert np.linalg.det(left.cell.array) < 0
    np.testing.assert_allclose(calculator.get_stress(left), calculator.get_stress(atoms))
    left.calc = calculator
    np.testing.assert_allclose(left.get_stress(), calculate_numerical_stress(left), atol=1e-7)


def test_single_atoms_and_separated_dimers_have_zero_forces(calculator):
    for atoms in (Atoms("C"), Atoms("CO", [[0, 0, 0], [30.0, 0, 0]])):
        calculator.calculate(atoms)
        assert not calculator.results["forces"].any()
        assert calculator.results["energies"].sum() == pytest.approx(calculator.results["energy"])


def test_cells_smaller_than_the_cut_off_agree_with_their_supercell(calculator):
    atoms = crystal()
    energy = calculator.get_potential_energy(atoms)
    large = calculator.get_potential_energy(atoms * (2, 2, 1))
    assert large == pytest.approx(4 * energy, abs=1e-8)


def test_other_calculators_can_be_added(calculator):
    atoms = boxed()
    other = LennardJones(sigma=0.1)
    atoms.calc = SumCalculator([calculator, other])
    assert atoms.get_stress().shape == (6,)
    parts = [one.get_potential_energy(boxed()) for one in (calculator, other)]
    assert atoms.get_potential_energy() == pytest.approx(sum(parts))


def test_cell_filters_take_the_free_energy_and_the_stress(calculator):
    atoms = boxed()
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(steps=3)
    assert atoms.get_potential_energy() < before


@pytest.mark.parametrize("name", ["x.db", "x.json", "x.traj", "x.xyz"])
def test_results_come_back_from_files(calculator, tmp_path, name):
    atoms = boxed()
    atoms.calc = calculator
    stress = atoms.get_stress()
    if name.endswith((".db", ".json")):
        with ase.db.connect(tmp_path / name) as database:
            database.write(atoms)
    else:
        ase.io.write(tmp_path / name, atoms)
    found = ase.io.read(tmp_path / name)
    assert found.get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_allclose(found.get_forces(), atoms.get_forces(), atol=1e-8)
    np.testing.assert_allclose(found.get_stress(), stress, atol=1e-8)


def test_results_that_were_handed_out_stay_as_they_are():
    calculator = LKMCalculator(small_model(), "cpu")
    atoms = rattled()
    atoms.calc = calculator
    forces = atoms.get_forces()
    frozen = SinglePointCalculator(atoms, **calculator.results)
    kept = forces.copy()
    forces += 1.0
    np.testing.assert_array_equal(atoms.get_forces(), kept)
    atoms.rattle(0.1)
    atoms.get_forces()
    np.testing.assert_array_equal(frozen.results["forces"], kept)


def test_labels_in_the_way_of_results_are_replaced(calculator, tmp_path):
    atoms = rattled()
    atoms.info |= {"energy": -1.0, "free_energy": -2.0, "REF_energy": -3.0}
    atoms.arrays["forces"] = np.zeros((9, 3))
    (results,) = calculator.evaluate([atoms])
    ase.io.write(tmp_path / "x.xyz", _labelled(atoms, results), format="extxyz")
    found = ase.io.read(tmp_path / "x.xyz")
    assert found.get_potential_energy() == pytest.approx(results["energy"])
    np.testing.assert_allclose(found.get_forces(), results["forces"], atol=1e-7)
    assert found.info["REF_energy"] == -3.0
    assert atoms.info["energy"] == -1.0


def test_labels_of_stress_may_be_a_matrix_and_missing_ones_nan(calculator):
    atoms = boxed()
    (results,) = calculator.evaluate([atoms])
    xx, yy, zz, yz, xz, xy = results["stress"] + 0.001
    matrix = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    atoms.calc = SinglePointCalculator(atoms, energy=np.nan, stress=matrix)
    table = _error_table([atoms], [results])
    assert "energy" not in table
    assert table.splitlines()[-1].split()[:3] == ["stress", "1.00", "1.00"]


@pytest.mark.parametrize("trajectory", ["t.traj", "t.xyz"])
def test_md_takes_structures_with_whatever_their_info_and_arrays_hold(tmp_path, trajectory):
    atoms = molecule("CH3CH2OH")
    atoms.info = {"spacegroup": Spacegroup(1), "tags": {1, 2}, "call": print, "name": "box"}
    atoms.arrays["phases"] = np.zeros(9, complex)
    atoms.calc = LKMCalculator("rmd17-ethanol", "cpu")
    settings = MDSettings(trajectory=trajectory, log_every=2, frame_every=2, timestep=0.1)
    with pytest.warns(UserWarning, match="tags, call.* left out"):
        simulation = Simulation(atoms, settings, tmp_path, restart_every=2)
    simulation.run(4)
    assert atoms.info["tags"] == {1, 2}
    again = Simulation(atoms, settings, tmp_path)
    assert again.resumed
    assert again.atoms.info["name"] == "box"
    assert again.run(6)
    assert len(ase.io.read(tmp_path / trajectory, ":")) == 4


def test_a_change_of_the_working_directory_leaves_files_where_they_were(tmp_path, monkeypatch):
    for name in ("begun", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "begun")
    atoms = rattled(amplitude=0.02)
    atoms.calc = LKMCalculator(
        "rmd17-ethanol", "cpu", on_extrapolation="save", extrapolation_file="new.xyz"
    )
    simulation = Simulation(atoms, MDSettings(timestep=0.1), "md")
    os.chdir(tmp_path / "elsewhere")
    simulation.run(2)
    strange = atoms.copy()
    strange.positions *= 1.4
    atoms.calc.get_potential_energy(strange)
    assert sorted(os.listdir(tmp_path / "begun")) == ["md", "new.xyz"]
    assert os.listdir(tmp_path / "elsewhere") == []

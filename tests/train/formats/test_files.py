import logging

import ase.db
import ase.io
import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from train.data.conversion import ENERGY_UNITS, LENGTH_UNITS
from train.data.frames import DataError
from train.formats.files import read_ase

STRESS = np.array([0.01, 0.02, 0.03, 0.004, 0.005, 0.006])


def labelled(atoms, energy=-10.0, **results):
    """The structure with an energy, and forces of which every number differs."""
    forces = 0.1 + 0.1 * np.arange(3 * len(atoms)).reshape(-1, 3)
    results = {"energy": energy, "forces": forces} | results
    atoms.calc = SinglePointCalculator(
        atoms, **{name: value for name, value in results.items() if value is not None}
    )
    return atoms


def mixed():
    """Water, ethanol and a crystal."""
    crystal = bulk("NaCl", "rocksalt", a=5.6)
    return [
        labelled(molecule("H2O"), -14.0),
        labelled(molecule("CH3CH2OH"), -46.0),
        labelled(crystal, -6.5, stress=STRESS),
    ]


def written(path, images):
    """The path of a file that ASE writes in the format of its suffix."""
    if path.suffix == ".db" or path.name.endswith("rows.json"):
        with ase.db.connect(path) as database:
            for atoms in images:
                database.write(atoms)
    else:
        ase.io.write(path, images)
    return path


@pytest.mark.parametrize("name", ["a.extxyz", "a.xyz", "a.traj", "a.db", "rows.json", "a@1.xyz"])
def test_mixed_structures(tmp_path, name):
    images = mixed()
    frames = read_ase(written(tmp_path / name, images))
    assert frames.sizes.tolist() == [3, 9, 2]
    assert frames.numbers.tolist() == [n for a in images for n in a.numbers]
    assert frames.energies.tolist() == [-14.0, -46.0, -6.5]
    for field in ("positions", "forces"):
        expected = np.concatenate([getattr(a, f"get_{field}")() for a in images])
        np.testing.assert_allclose(getattr(frames, field), expected, atol=1e-7)
    assert frames.pbc.tolist() == [[False] * 3] * 2 + [[True] * 3]
    np.testing.assert_allclose(frames.cells[2], images[2].cell.array)
    assert not frames.cells[:2].any()
    assert np.isnan(frames.stress[:2]).all()
    xx, yy, zz, yz, xz, xy = STRESS
    expected = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
    np.testing.assert_allclose(frames.stress[2], expected, atol=1e-9)


def with_virial(sign=-1.0, name="virial", stress=False, shape=(3, 3)):
    """Water without, and a crystal with a virial, of that sign times stress and volume."""
    xx, yy, zz, yz, xz, xy = STRESS
    tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    crystal = labelled(bulk("NaCl", "rocksalt", a=5.6), -6.5, stress=STRESS if stress else None)
    virial = sign * tensor * crystal.get_volume()
    crystal.info[name] = virial.reshape(shape) if shape != (6,) else sign * STRESS * 5.6**3 / 4
    return tensor, [labelled(molecule("H2O"), -14.0), crystal]


@pytest.mark.parametrize("shape", [(3, 3), (9,), (6,)])
@pytest.mark.parametrize("name", ["virial", "virials", "REF_virial", "REF_virials"])
@pytest.mark.parametrize("file", ["a.extxyz", "a.traj"])
def test_a_virial_becomes_stress(tmp_path, name, shape, file):
    expected, images = with_virial(name=name, shape=shape)
    if (file, name, shape) == ("a.extxyz", "virial", (6,)):
        pytest.skip("ASE refuses it itself")
    frames = read_ase(written(tmp_path / file, images))
    assert np.isnan(frames.stress[0]).all()
    np.testing.assert_allclose(frames.stress[1], expected, rtol=1e-6)
    assert frames.stress[1, 0, 0] == pytest.approx(0.01)  # stretched, as its virial is negative


def test_the_unit_of_a_virial(tmp_path):
    expected, images = with_virial()
    for atoms in images:
        atoms.calc.results["energy"] /= 27.2114
        atoms.calc.results["forces"] /= 27.2114 / 0.529177
        atoms.cell = atoms.cell.array / 0.529177
        atoms.positions /= 0.529177
    images[1].info["virial"] = images[1].info["virial"] / 27.2114
    for atoms in images:
        atoms.calc.atoms = atoms.copy()
    frames = read_ase(written(tmp_path / "a.traj", images), "Hartree", "Bohr")
    np.testing.assert_allclose(frames.stress[1], expected, rtol=1e-5)


def test_stress_and_virial_of_one_file(tmp_path):
    expected, images = with_virial(stress=True)
    other = with_virial()[1][1]  # has a virial only
    frames = read_ase(written(tmp_path / "a.extxyz", [*images, other]))
    np.testing.assert_allclose(frames.stress[1:], [expected] * 2, rtol=1e-6)
    for sign in (1.0, -1.1, -160.2):  # of pressure, of another volume, in GPa
        images = with_virial(sign=sign, stress=True)[1]
        with pytest.raises(DataError, match=r"first: \[1\]\) whose stress is not −virial"):
            read_ase(written(tmp_path / "a.extxyz", images))


def test_virials_that_have_no_volume(tmp_path):
    water, slab = molecule("H2O"), labelled(molecule("H2O"))
    slab.set_cell([9, 9, 0])
    slab.pbc = [True, True, False]
    for atoms in (water, slab):
        atoms.info |= {"energy": -14.0, "virial": np.eye(3)}
    assert read_ase(written(tmp_path / "a.traj", [water])).usable_stress is None
    with pytest.raises(DataError, match="with a virial but without a cell volume"):
        read_ase(written(tmp_path / "b.traj", [slab]))


def test_molecules_without_forces(tmp_path):
    images = [labelled(molecule(name), forces=None) for name in ("H2O", "CH4")]
    frames = read_ase(written(tmp_path / "a.traj", images))
    assert frames.forces is None
    assert frames.cells is None
    assert frames.pbc is None
    assert frames.stress is None


@pytest.mark.parametrize(
    ("energy", "ev"),
    [
        ("eV", 1.0),
        ("meV", 1e-3),
        ("Hartree", 27.2114),
        ("kcal/mol", 0.0433641),
        ("kJ/mol", 0.0103643),
        ("Ry", 13.6057),
    ],
)
@pytest.mark.parametrize(
    ("length", "angstrom"),
    [("Å", 1.0), ("\u212b", 1.0), ("Angstrom", 1.0), ("Bohr", 0.529177), ("nm", 10.0)],
)
def test_units(tmp_path, energy, ev, length, angstrom):
    ours = mixed()
    theirs = [
        labelled(
            Atoms(a.numbers, a.positions / angstrom, cell=a.cell.array / angstrom, pbc=a.pbc),
            a.get_potential_energy() / ev,
            forces=a.get_forces() / ev * angstrom,
            stress=a.calc.results["stress"] / ev * angstrom**3 if a.pbc.any() else None,
        )
        for a in ours
    ]
    expected = read_ase(written(tmp_path / "ours.traj", ours))
    frames = read_ase(written(tmp_path / "theirs.traj", theirs), energy, length)
    for field in ("positions", "energies", "forces", "cells", "stress"):
        np.testing.assert_allclose(
            getattr(frames, field), getattr(expected, field), rtol=1e-5, atol=1e-9
        )


def test_tables_of_units():
    assert set(ENERGY_UNITS) == {"eV", "Hartree", "kcal/mol", "kJ/mol", "meV", "Ry"}
    assert set(LENGTH_UNITS) == {"Å", "Angstrom", "Bohr", "nm"}


def test_unknown_units(tmp_path):
    path = written(tmp_path / "a.traj", mixed())
    with pytest.raises(DataError, match="energy_unit is 'hartree'; choose one of eV, meV, Hartree"):
        read_ase(path, energy_unit="hartree")
    with pytest.raises(DataError, match="length_unit is 'pm'; choose one of Å"):
        read_ase(path, length_unit="pm")


def test_wrong_units_are_noticed(tmp_path):
    images = [labelled(molecule("H2O"), -76.4 * 627.5)]
    with pytest.raises(DataError, match="energy of frame 0 is"):
        read_ase(written(tmp_path / "a.traj", images))
    assert len(read_ase(tmp_path / "a.traj", check_units=False)) == 1
    assert len(read_ase(tmp_path / "a.traj", energy_unit="kcal/mol")) == 1


@pytest.mark.parametrize(
    "energy", ["energy", "Energy", "REF_energy", "total_energy", "free_energy"]
)
@pytest.mark.parametrize("force", ["forces", "force", "REF_forces"])
def test_names_of_labels(tmp_path, energy, force):
    atoms = molecule("H2O")
    atoms.info[energy] = -14.0
    atoms.arrays[force] = np.full((3, 3), 0.5)
    frames = read_ase(written(tmp_path / "a.extxyz", [atoms]))
    assert frames.energies.tolist() == [-14.0]
    assert (frames.forces == 0.5).all()


def test_names_of_columns_in_a_database(tmp_path):
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(molecule("H2O"), total_energy=-14.0)
    assert read_ase(tmp_path / "a.db").energies.tolist() == [-14.0]


def test_data_of_a_database(tmp_path):
    labels = {"energy": np.array([-14.0]), "forces": np.full((3, 3), 0.5)}
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(molecule("H2O"), data=labels)
    frames = read_ase(tmp_path / "a.db")
    assert frames.energies.tolist() == [-14.0]
    assert (frames.forces == 0.5).all()


def test_nan_in_positions(tmp_path):
    atoms = molecule("H2O")
    atoms.info["energy"] = -14.0
    path = written(tmp_path / "a.extxyz", [atoms])
    path.write_text(path.read_text().replace(f"{atoms.positions[1, 1]:.8f}", "NaN", 1))
    with pytest.raises(DataError, match=r"positions contain NaN.*\[0\]"):
        read_ase(path)


def test_one_name_of_several_is_read_and_reported(tmp_path, caplog):
    images = [labelled(molecule("H2O"), -14.0), labelled(molecule("H2O"), -14.5)]
    for atoms in images:
        atoms.info["REF_energy"] = -13.0
    with caplog.at_level(logging.WARNING):
        frames = read_ase(written(tmp_path / "a.extxyz", images))
    assert frames.energies.tolist() == [-14.0, -14.5]
    assert "energy and REF_energy; energy is read" in caplog.text


def test_names_are_not_mixed(tmp_path):
    other = labelled(molecule("H2O"), None)
    other.info["free_energy"] = -14.0
    images = [labelled(molecule("H2O"), -14.0), other]
    with pytest.raises(DataError, match=r"1 frame\(s\) \(first: \[1\]\) without energy"):
        read_ase(written(tmp_path / "a.extxyz", images))


def test_energy_as_an_array_of_one_number(tmp_path):
    path = written(tmp_path / "a.traj", [labelled(molecule("H2O"), np.array([-14.0]))])
    assert read_ase(path).energies.tolist() == [-14.0]


def test_forces_on_fixed_atoms_are_kept(tmp_path):
    atoms = labelled(molecule("H2O"))
    atoms.set_constraint(FixAtoms([0]))
    for name in ("a.traj", "a.db", "a.extxyz"):
        frames = read_ase(written(tmp_path / name, [atoms]))
        np.testing.assert_allclose(frames.forces[0], [0.1, 0.2, 0.3])


def bad_cell():
    atoms = molecule("H2O")
    atoms.pbc = True
    atoms.cell = [10, 10, 0]
    return labelled(atoms)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (molecule("H2O"), r"1 frame\(s\) \(first: \[3\]\) without energy.*atoms.info"),
        (labelled(molecule("H2O"), np.nan), r"energies contain NaN.*\[3\]"),
        (labelled(molecule("H2O"), np.zeros(3)), r"energy of frame 3 has .* shape \(3,\)"),
        (labelled(molecule("H2O"), forces=np.full((3, 3), np.inf)), r"forces contain.*\[3\]"),
        (labelled(Atoms("X")), r"\[0\] are not valid atomic numbers"),
        (labelled(Atoms("H2")), "two atoms of frame 3"),
        (labelled(Atoms()), r"first: \[3\]\) without atoms"),
        (bad_cell(), r"first: \[3\]\) with periodic directions"),
        (labelled(molecule("H2O"), stress=np.zeros((2, 2))), "stress of frame 3 .*must be numeric"),
    ],
    ids=[
        "energy",
        "nan",
        "shape",
        "infinity",
        "X",
        "distance",
        "empty",
        "cell",
        "stress",
    ],
)
def test_unusable_frames(tmp_path, bad, message):
    with pytest.raises(DataError, match=message):
        read_ase(written(tmp_path / "a.traj", [*mixed(), bad]))


def test_no_energy_anywhere(tmp_path):
    path = written(tmp_path / "a.xyz", [molecule("H2O")] * 7)
    with pytest.raises(
        DataError, match=r"7 frame\(s\) \(first: \[0, 1, 2, 3, 4\]\) without energy"
    ):
        read_ase(path)


def test_damaged_files(tmp_path):
    for suffix in ("xyz", "db"):
        with pytest.raises(DataError, match="does not exist"):
            read_ase(tmp_path / f"none.{suffix}")
        assert not (tmp_path / f"none.{suffix}").exists()
    for name in ("a.extxyz", "a.traj", "a.db"):
        path = written(tmp_path / name, mixed() * 3)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 7])
        with pytest.raises(DataError, match="not a readable structure file.*truncated"):
            read_ase(path)
    (tmp_path / "empty.xyz").write_text("")
    with pytest.raises(DataError, match="contains no structures|not a readable file"):
        read_ase(tmp_path / "empty.xyz")

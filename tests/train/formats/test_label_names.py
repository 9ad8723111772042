"""Labels under the names that files of the field give them."""

import json
import logging

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from lkm_calc import save_model
from lkm_calc.units import KCAL_PER_MOL
from train.__main__ import main
from train.data.frames import DataError
from train.formats.files import read_ase
from train.formats.hdf5 import read_hdf5, write_hdf5
from train.formats.label_names import LabelKeys, candidates, numeric_entries
from train.formats.read import read_frames

from ...support import rmd17_arrays, small_model, write_npz

STRESS = np.array([0.01, 0.02, 0.03, 0.004, 0.005, 0.006])
MATRIX = np.array([[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]])


def forces_of(atoms):
    return 0.1 + 0.1 * np.arange(3 * len(atoms)).reshape(-1, 3)


def named(energy="dft_energy", forces="dft_forces"):
    """Water and ethanol with labels under these names."""
    images = [molecule("H2O"), molecule("CH3CH2OH")]
    for atoms, value in zip(images, (-14.0, -46.0), strict=True):
        atoms.info[energy] = value
        atoms.arrays[forces] = forces_of(atoms)
    return images


def written(path, images):
    if path.suffix == ".db":
        with ase.db.connect(path) as database:
            for atoms in images:
                numbers = {k: float(v) for k, v in atoms.info.items() if np.ndim(v) == 0}
                own = ("numbers", "positions")
                arrays = {k: v for k, v in atoms.arrays.items() if k not in own}
                arrays |= {k: v for k, v in atoms.info.items() if k not in numbers}
                database.write(Atoms(atoms.numbers, atoms.positions), data=arrays, **numbers)
    else:
        ase.io.write(path, images)
    return path


@pytest.mark.parametrize("name", ["a.extxyz", "a.db"])
@pytest.mark.parametrize(
    ("energy", "forces"),
    [
        ("dft_energy", "dft_force"),
        ("dft_energy", "dft_forces"),
        ("energy_xtb", "forces_xtb"),
        ("REF_energy", "REF_forces"),
        ("E", "F"),
    ],
)
def test_energies_and_forces_are_read_under_the_names_given(tmp_path, name, energy, forces):
    images = named(energy, forces)
    keys = LabelKeys(energy=energy, forces=forces)
    frames = read_frames(written(tmp_path / name, images), keys=keys)
    assert frames.energies.tolist() == [-14.0, -46.0]
    np.testing.assert_allclose(frames.forces, np.concatenate([*map(forces_of, images)]))


def test_without_a_name_the_error_lists_the_numbers_and_the_option(tmp_path):
    path = written(tmp_path / "a.extxyz", named())
    listed = r"info: dft_energy \(number\); arrays: dft_forces \(atoms × 3\)\."
    with pytest.raises(DataError, match=rf"without energy.*{listed}.*--data.energy_key dft_energy"):
        read_ase(path)
    bare = written(tmp_path / "bare.extxyz", [molecule("H2O")])
    with pytest.raises(DataError, match=r"without energy.*The file contains no other numbers\.$"):
        read_ase(bare)


def test_a_name_that_no_frame_has_is_an_error_that_lists_the_numbers(tmp_path):
    path = written(tmp_path / "a.extxyz", named())
    keys = LabelKeys("dft_energy", "dft_force")
    with pytest.raises(
        DataError, match=r"forces_key is 'dft_force', but no frame.*--data.forces_key dft_forces \("
    ):
        read_ase(path, keys=keys)


def test_forces_that_are_not_read_are_warned_of(tmp_path, caplog):
    path = written(tmp_path / "a.extxyz", named("energy", "F"))
    with caplog.at_level(logging.WARNING):
        assert read_ase(path).forces is None
    told = "no forces under the usual names. The file contains F (atoms × 3); to read it, set "
    assert told + "--data.forces_key F" in caplog.text


def test_a_named_label_counts_before_the_usual_one(tmp_path, caplog):
    images = named()
    for atoms in images:
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=-forces_of(atoms))
    path = written(tmp_path / "a.extxyz", images)
    assert read_ase(path).energies.tolist() == [-1.0, -1.0]
    frames = read_ase(path, keys=LabelKeys("dft_energy", "dft_forces"))
    assert frames.energies.tolist() == [-14.0, -46.0]
    assert (frames.forces > 0).all()
    assert not caplog.records
    for keys, text in (
        (
            LabelKeys(energy="dft_energy"),
            "energies are read from dft_energy and forces from forces",
        ),
        (
            LabelKeys(forces="dft_forces"),
            "energies are read from energy and forces from dft_forces",
        ),
    ):
        read_ase(path, keys=keys)
        assert text in caplog.text


def salt(**info):
    crystal = bulk("NaCl", "rocksalt", a=5.6)
    crystal.info |= {"energy": -6.5, **info}
    return crystal


@pytest.mark.parametrize("shape", [(3, 3), (9,), (6,)])
@pytest.mark.parametrize("kind", ["stress", "virial"])
@pytest.mark.parametrize("file", ["a.extxyz", "a.traj"])
def test_stress_and_virial_of_any_shape_and_their_signs(tmp_path, file, kind, shape):
    volume = salt().get_volume()
    value = STRESS if shape == (6,) else MATRIX.reshape(shape)
    name = f"dft_{kind}"
    image = salt(**{name: value if kind == "stress" else -volume * value})
    keys = LabelKeys(**{kind: name})
    frames = read_ase(written(tmp_path / file, [image]), keys=keys)
    np.testing.assert_allclose(frames.stress[0], MATRIX, rtol=1e-6)


def test_a_named_stress_is_not_compared_with_the_usual_virial(tmp_path, caplog):
    path = written(tmp_path / "a.traj", [salt(stress_xtb=STRESS, virial=np.eye(3))])
    np.testing.assert_allclose(
        read_ase(path, keys=LabelKeys(stress="stress_xtb")).stress[0], MATRIX
    )
    disagreeing = LabelKeys(stress="stress_xtb", virial="virial")
    with pytest.raises(DataError, match="whose stress is not −virial"):
        read_ase(path, keys=disagreeing)
    other = written(tmp_path / "b.traj", [salt(dft_virial=np.eye(3))])
    with caplog.at_level(logging.WARNING):
        assert read_ase(other).stress is None
    assert "no stress under" not in caplog.text
    assert "no virial under the usual names" in caplog.text
    assert (
        "contains dft_virial (3 × 3); to read it, set --data.virial_key dft_virial" in caplog.text
    )


def test_likely_labels_come_first():
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
    atoms.info |= {"E": -1.0, "xtb_energy": -2.0, "pressure": 3.0, "name": "water", "flag": True}
    atoms.arrays["F"] = np.zeros((2, 3))
    atoms.arrays["charges"] = np.zeros(2)
    entries = numeric_entries([atoms])
    shapes = {entry.name: entry.shape for entry in entries}
    numbers = dict.fromkeys(("E", "xtb_energy", "pressure"), "number")
    assert shapes == {**numbers, "F": "atoms × 3", "charges": "atoms"}
    assert [entry.name for entry in candidates("energy", entries)] == ["xtb_energy", "E"]
    assert [entry.name for entry in candidates("forces", entries)] == ["F"]


def test_names_in_an_npz_of_the_layout_of_md17(tmp_path):
    arrays = rmd17_arrays(20)
    theirs = {
        "z": arrays["nuclear_charges"],
        "R": arrays["coords"],
        "dft_E": arrays["energies"],
        "F": arrays["forces"],
    }
    path = write_npz(tmp_path / "a.npz", **theirs)
    frames = read_frames(path, keys=LabelKeys(energy="dft_E"))
    np.testing.assert_allclose(frames.energies, arrays["energies"] * KCAL_PER_MOL)
    with pytest.raises(DataError, match="other labels can be selected with --data.energy_key"):
        read_frames(path)
    revised = write_npz(tmp_path / "b.npz", **arrays)
    frames = read_frames(revised, keys=LabelKeys(energy="old_energies"))
    np.testing.assert_allclose(frames.energies, (arrays["energies"] + 1) * KCAL_PER_MOL)
    with pytest.raises(DataError, match="dft_energies, forces; an MD17 file z, R, dft_energies, F"):
        read_frames(revised, keys=LabelKeys(energy="dft_energies"))
    with pytest.raises(DataError, match=r"stress_key 's' is given.*only energy_key and forces_key"):
        read_frames(revised, keys=LabelKeys(stress="s"))


def test_names_in_hdf5(tmp_path):
    path = tmp_path / "a.h5"
    write_hdf5(read_frames(write_npz(tmp_path / "a.npz", **rmd17_arrays(20))), path)
    expected = read_hdf5(path)
    with h5py.File(path, "a") as file:
        file["xtb"] = expected.energies * 1000 + 7
        file["xtb"].attrs["units"] = "meV"
    frames = read_frames(path, keys=LabelKeys(energy="xtb"))
    np.testing.assert_allclose(frames.energies, expected.energies + 0.007, rtol=1e-12)
    with pytest.raises(DataError, match=r"lacks the dataset\(s\) dft.*xtb.*--data.forces_key"):
        read_frames(path, keys=LabelKeys(forces="dft"))
    with pytest.raises(DataError, match="virial_key 'v' is given, but the name is fixed"):
        read_frames(path, keys=LabelKeys(virial="v"))


def test_formats_with_fixed_names_refuse_others(tmp_path):
    frames = {"N": [3], "Z": [8, 1, 1], "R": molecule("H2O").positions, "U0": [-76.0]}
    path = write_npz(tmp_path / "qm9.npz", **{k: np.array(v) for k, v in frames.items()})
    with pytest.raises(DataError, match="energy_key 'E' is given.*leave them empty"):
        read_frames(path, keys=LabelKeys(energy="E"))


def test_the_commands_take_the_names(tmp_path, capsys, caplog):
    path = str(written(tmp_path / "a.extxyz", named()))
    keys = ["--energy-key", "dft_energy", "--forces-key", "dft_forces"]
    assert main(["check-data", path]) == 2
    assert "--energy-key of check-data" in caplog.text
    main(["check-data", path, *keys])
    assert "energies in all, forces in all" in capsys.readouterr().out
    model = small_model()
    model.calibrate(1.0, {1: -1.0, 6: -1.0, 8: -1.0}, [1, 6, 8])
    save_model(model, tmp_path / "plain.safetensors", {})
    assert main(["evaluate", str(tmp_path / "plain.safetensors"), path]) == 1
    command = ["evaluate", str(tmp_path / "plain.safetensors"), path, "--no-check-units"]
    assert main([*command, *keys]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["force_mae"] > 0
    # A model that was trained on labels of these names looks for them by itself.
    learnt = {"config": {"data": {"energy_key": "dft_energy", "forces_key": "dft_forces"}}}
    save_model(model, tmp_path / "learnt.safetensors", learnt)
    command[1] = str(tmp_path / "learnt.safetensors")
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == figures

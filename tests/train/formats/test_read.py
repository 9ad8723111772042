import ase.io
import h5py
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from train.data.frames import DataError
from train.formats.hdf5 import write_hdf5
from train.formats.md17 import read_md17
from train.formats.read import FORMATS, detect_format, read_frames

from ...support import rmd17_arrays, shared_data, write_npz
from .test_chignolin import chignolin_arrays
from .test_qm9 import qm9_arrays


def rmd17(folder):
    return write_npz(folder / "r.npz", **rmd17_arrays(30))


def md17(folder):
    raw = rmd17_arrays(30)
    return write_npz(
        folder / "m.npz",
        z=raw["nuclear_charges"],
        R=raw["coords"],
        E=raw["energies"],
        F=raw["forces"],
    )


def chignolin(folder):
    return write_npz(folder / "c.npz", **chignolin_arrays(30))


def qm9(folder):
    return write_npz(folder / "q.npz", **qm9_arrays())


def hdf5(folder):
    write_hdf5(read_md17(rmd17(folder)), folder / "h.H5")
    return folder / "h.H5"


def structures(name):
    def write(folder):
        frames = read_md17(rmd17(folder))
        images = []
        for f in range(30):
            one = frames.select(np.array([f]))
            atoms = molecule("CH3CH2OH", positions=one.positions)
            results = {"energy": one.energies[0], "forces": one.forces}
            atoms.calc = SinglePointCalculator(atoms, **results)
            images.append(atoms)
        ase.io.write(folder / name, images)
        return folder / name

    return write


CASES = [
    (rmd17, "md17"),
    (md17, "md17"),
    (chignolin, "chignolin"),
    (hdf5, "hdf5"),
    (structures("s.xyz"), "ase"),
    (structures("s.traj"), "ase"),
    (structures("s.json"), "ase"),
    (structures("s.db"), "ase"),
    (structures("s.xyz.gz"), "ase"),
]


@pytest.mark.parametrize(("write", "name"), CASES)
def test_formats_are_told_apart_and_agree(tmp_path, write, name):
    path = write(tmp_path)
    assert detect_format(path) == name
    frames, expected = read_frames(path), read_md17(rmd17(tmp_path))
    for field in ("positions", "energies", "forces"):
        np.testing.assert_allclose(getattr(frames, field), getattr(expected, field), atol=1e-6)
    np.testing.assert_array_equal(read_frames(str(path), name).energies, frames.energies)


def test_options_reach_their_reader(tmp_path):
    path = rmd17(tmp_path)
    shift = read_frames(path, labels="original").energies - read_frames(path).energies
    np.testing.assert_allclose(shift, 0.0433641, rtol=1e-5)
    assert read_frames(qm9(tmp_path), target="Cv").energies.tolist() == qm9_arrays()["Cv"].tolist()
    path = structures("s.xyz")(tmp_path)
    assert read_frames(path, length_unit="Bohr", check_units=False).positions == pytest.approx(
        read_frames(path).positions * 0.529177, rel=1e-5
    )
    ratio = read_frames(path, energy_unit="meV", check_units=False).energies[0]
    assert ratio == pytest.approx(read_frames(path).energies[0] / 1000)
    with pytest.raises(DataError, match="plausible"):
        read_frames(path, energy_unit="meV")


@pytest.mark.parametrize("write", [chignolin, qm9, hdf5])
@pytest.mark.parametrize("unit", [{"energy_unit": "eV"}, {"length_unit": "Å"}])
def test_units_of_formats_that_fix_them(tmp_path, write, unit):
    with pytest.raises(DataError, match="Leave both empty"):
        read_frames(write(tmp_path), **unit)


def test_unknown_formats(tmp_path):
    path = rmd17(tmp_path)
    with pytest.raises(DataError, match="format is 'rmd17'; choose one of auto, md17, chignolin"):
        read_frames(path, "rmd17")
    other = write_npz(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(DataError, match="the arrays a, .*not a known layout.*md17: npz.*qm9: npz"):
        read_frames(other)
    # Padded arrays, of PhysNet for example, have the names of Chignolin's.
    arrays = chignolin_arrays(30)
    padded = arrays | {name: arrays[name].reshape(30, 9, 3) for name in ("R", "F")}
    with pytest.raises(DataError, match=r"R has shape \(30, 9, 3\), not \(270, 3\)"):
        read_frames(write_npz(tmp_path / "padded.npz", **padded))
    (tmp_path / "notes.txt").write_text("Energies are in the other file.\n")
    with pytest.raises(DataError, match="unknown format. Supported formats: md17.*hdf5.*ase"):
        read_frames(tmp_path / "notes.txt")


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(DataError, match="none.npz does not exist"):
        read_frames(tmp_path / "none.npz")
    with pytest.raises(DataError, match="is not a file"):
        read_frames(tmp_path)
    for name in ("a.npz", "a.h5", "a.xyz", "a.xyz.gz", "a.traj", "a.db", "a.dat"):
        (tmp_path / name).write_bytes(b"\x1f\x8b damaged")
        with pytest.raises(DataError, match=name):
            read_frames(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=name):
            read_frames(tmp_path / name)


def test_foreign_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["x"] = 1.0
    with pytest.raises(DataError, match="not 'lkm-frames'"):
        read_frames(tmp_path / "a.hdf5")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("rmd17/rmd17_ethanol_train_01.npz", "md17"),
        ("chignolin/chignolin_gfn2.npz", "chignolin"),
        ("qm9/qm9_130831.npz", "qm9"),
    ],
)
def test_genuine_files_are_told_apart(file, name):
    assert detect_format(shared_data(file)) == name
    assert name in FORMATS

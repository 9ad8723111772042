from dataclasses import fields, replace

import h5py
import numpy as np
import pytest

from train.data.frames import DataError, Frames
from train.formats.hdf5 import read_hdf5, write_hdf5
from train.formats.md17 import read_md17

from ...support import rmd17_arrays, write_npz


def molecules(frames=30):
    """Frames without a cell."""
    raw = rmd17_arrays(frames)
    kcal = 0.0433641
    return Frames.of_one_molecule(
        raw["nuclear_charges"].astype(np.int64),
        raw["coords"],
        raw["energies"] * kcal,
        raw["forces"] * kcal,
    )


def crystals():
    """Two frames of different sizes, one of them periodic and with stress."""
    return Frames(
        numbers=np.array([1, 1, 14, 14, 6]),
        positions=np.array([[0, 0, 0], [0, 0, 0.8], [0, 0, 0], [1.4, 1.4, 1.4], [3, 3, 3.1]]),
        energies=np.array([-31.0, -600.0]),
        starts=np.array([0, 2, 5]),
        forces=np.linspace(-1, 1, 15).reshape(5, 3),
        cells=np.array([np.zeros((3, 3)), np.diag([5.0, 6.0, 7.0])]),
        pbc=np.array([[False] * 3, [True, True, False]]),
        stress=np.array([np.full((3, 3), np.nan), np.eye(3) * 0.01]),
    )


@pytest.fixture
def path(tmp_path):
    write_hdf5(crystals(), tmp_path / "a.h5", "two frames")
    return tmp_path / "a.h5"


@pytest.mark.parametrize("frames", [molecules(), crystals()], ids=["molecules", "crystals"])
def test_what_is_written_is_read(tmp_path, frames):
    write_hdf5(frames, tmp_path / "a.h5")
    back = read_hdf5(tmp_path / "a.h5")
    for field in fields(Frames):
        expected, found = getattr(frames, field.name), getattr(back, field.name)
        assert (expected is None) == (found is None)
        if found is not None:
            np.testing.assert_array_equal(found, expected)
            assert np.asarray(found).dtype == np.asarray(expected).dtype


def test_as_read_from_md17(tmp_path):
    frames = read_md17(write_npz(tmp_path / "a.npz", **rmd17_arrays()))
    write_hdf5(frames, tmp_path / "a.h5")
    np.testing.assert_array_equal(read_hdf5(tmp_path / "a.h5").forces, frames.forces)


def test_the_layout_explains_itself(path):
    with h5py.File(path) as file:
        assert dict(file.attrs) == {
            "format": "lkm-frames",
            "version": 1,
            "description": "two frames",
        }
        units = {name: file[name].attrs["units"] for name in file}
        assert file["positions"].dtype == np.float64
        assert file["forces"].compression == "gzip"
        assert file["forces"].shuffle
    assert units == {
        "numbers": "1",
        "positions": "Å",
        "energies": "eV",
        "starts": "1",
        "forces": "eV/Å",
        "cells": "Å",
        "pbc": "1",
        "stress": "eV/Å^3",
    }


@pytest.mark.parametrize(
    ("name", "units", "factor"),
    [
        ("positions", "nm", 10.0),
        ("positions", "\u212b", 1.0),
        ("energies", "kcal/mol", 0.0433641),
        ("energies", b"Hartree", 27.2114),
        ("forces", "Hartree/Bohr", 51.4221),
        ("forces", "kJ/mol/nm", 0.00103643),
        ("cells", "Bohr", 0.529177),
        ("stress", "GPa", 0.00624151),
        ("stress", "Ry/Bohr^3", 91.8158),
    ],
)
def test_other_units_are_converted(path, name, units, factor):
    with h5py.File(path, "r+") as file:
        file[name].attrs["units"] = np.bytes_(units) if isinstance(units, bytes) else units
    found = getattr(read_hdf5(path, check_units=False), name)
    np.testing.assert_allclose(found, factor * getattr(crystals(), name), rtol=1e-5)


def test_properties_keep_their_unit(tmp_path):
    dipoles = replace(crystals(), forces=None, energy_unit="Debye")
    write_hdf5(dipoles, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["energies"].attrs["units"] == "Debye"
    found = read_hdf5(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.energies, dipoles.energies)
    assert found.energy_unit == "Debye"
    with pytest.raises(DataError, match="energy_unit is 'kcal/mol'; it must be eV"):
        write_hdf5(replace(dipoles, energy_unit="kcal/mol"), tmp_path / "b.h5")


def put(name, value):
    def change(file):
        units = file[name].attrs["units"]
        del file[name]
        file[name] = value
        file[name].attrs["units"] = units

    return change


def remove(name):
    return lambda file: file.__delitem__(name)


def attribute(name, key, value):
    return lambda file: file[name].attrs.__setitem__(key, value)


def to_group(file):
    del file["energies"]
    file.create_group("energies")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("positions"), "lacks the dataset.*positions; it contains cells.*write_hdf5"),
        (to_group, "lacks the dataset.*energies"),
        (remove("pbc"), "one of cells and pbc"),
        (attribute("/", "version", 2), "has version 2 of lkm-frames; this lkm-calc reads"),
        (attribute("/", "format", "other"), "with format 'other', not 'lkm-frames'"),
        (lambda file: file.attrs.__delitem__("format"), "with format '', not"),
        (attribute("forces", "units", "eV/pm"), "units of forces is 'eV/pm'; choose one of eV/Å"),
        (attribute("energies", "units", ""), "units of energies is ''; choose one of eV"),
        (lambda f: f["positions"].attrs.__delitem__("units"), "units of positions is ''"),
        (put("positions", np.zeros((4, 3))), r"positions has shape \(4, 3\), not \(5, 3\)"),
        (put("forces", np.zeros((5, 2))), r"forces has shape \(5, 2\), not \(5, 3\)"),
        (put("energies", np.zeros(3)), r"starts has shape \(3,\), not \(4,\)"),
        (put("stress", np.zeros((2, 6))), r"stress has shape \(2, 6\), not \(2, 3, 3\)"),
        (put("starts", [0, 2, 4]), "starts must increase from 0 to the number of atoms, 5"),
        (put("starts", [1, 2, 5]), "starts must increase"),
        (put("starts", [0, 0, 5]), "starts must increase"),
        (put("starts", [0, 2.5, 5]), "starts contains non-integer values"),
        (put("numbers", [1, 1, 14, 14, 0]), r"\[0\] are not valid atomic numbers"),
        (put("energies", [-31.0, np.nan]), r"energies contain NaN.*\[1\]"),
        (put("energies", ["a", "b"]), "energies has dtype object, which is not numeric"),
        (put("forces", np.full((5, 3), 1e4)), "RMS force"),
    ],
)
def test_unusable_files(path, change, message):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message) as refused:
        read_hdf5(path)
    assert "a.h5" in str(refused.value)


def test_damaged_files(tmp_path, path):
    with pytest.raises(DataError, match="does not exist"):
        read_hdf5(tmp_path / "none.h5")
    write_hdf5(molecules(), path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"energy 1.0\n", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable HDF5 file.*write it again"):
            read_hdf5(path)


def test_a_flipped_bit_is_noticed(path):
    write_hdf5(molecules(), path)
    with h5py.File(path) as file:
        chunk = file["positions"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        read_hdf5(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_hdf5(replace(crystals(), forces=np.array([object()])), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DataError, match="no frames to write"):
        write_hdf5(crystals().select(np.array([], np.int64)), path)

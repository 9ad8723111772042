"""Data files as users have them: situations of the field's public bug reports."""

import gzip
import logging
import subprocess
import sys

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from lkm_calc.commands.common import read_structures
from lkm_calc.files.structures import iread_structures, is_xyz
from train.config import config_from_table
from train.data.frames import DataError
from train.fit.loop import fit
from train.formats.hdf5 import write_hdf5
from train.formats.read import read_frames

from ..support import SMALL, rattled, spring_labels


def labelled(count=4, **extra):
    frames = []
    for seed in range(count):
        atoms = rattled(seed=seed, amplitude=0.08)
        (energy,), (forces,) = spring_labels(atoms.positions[None])
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, **extra)
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "frames.xyz"
    ase.io.write(path, labelled())
    return path.read_bytes()


@pytest.fixture(scope="module")
def expected():
    return np.array([atoms.get_potential_energy() for atoms in labelled()])


AUTHOR = b'pbc="F F F" author="M\xfcller"'


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("crlf.xyz", lambda b: b.replace(b"\n", b"\r\n")),
        ("mark.xyz", lambda b: b"\xef\xbb\xbf" + b),
        ("powershell.xyz", lambda b: b.decode().replace("\n", "\r\n").encode("utf-16")),
        ("latin1.xyz", lambda b: b.replace(b'pbc="F F F"', AUTHOR)),
        ("gpumd.exyz", lambda b: b),
        ("frames.txt", lambda b: b),
        ("frames.dat", lambda b: b),
        ("frames", lambda b: b),
        ("frames.xyz@1", lambda b: b),
        ("Daten ü[1]*.XYZ", lambda b: b),
        ("packed.exyz.gz", gzip.compress),
        ("first.xyz", lambda b: b"\n \n" + b),
        ("last.xyz", lambda b: b.rstrip(b"\n")),
    ],
)
def test_extended_xyz_is_read_whatever_its_name_and_encoding(raw, expected, tmp_path, name, change):
    path = tmp_path / name
    path.write_bytes(change(raw))
    np.testing.assert_allclose(read_frames(path).energies, expected)
    assert len(read_structures(str(path))) == 4
    for index in (0, 2, -1):
        (one,) = read_structures(f"{path}@{index}")
        assert one.get_potential_energy() == pytest.approx(expected[index])
    assert len(read_structures(f"{path}@::2")) == 2


@pytest.mark.parametrize("blank", [b"\n", b"\n\n", b" \r\n"])
def test_frames_after_a_blank_line_are_not_lost(raw, expected, tmp_path, blank):
    path = tmp_path / "joined.xyz"
    path.write_bytes(raw + blank + raw + blank)
    assert len(ase.io.read(path, ":")) == 4  # which is why it is not left to ASE
    np.testing.assert_allclose(read_frames(path).energies, [*expected, *expected])
    assert len(read_structures(str(path))) == 8


def test_an_empty_comment_and_cell_vectors_of_plain_xyz_are_kept(tmp_path):
    path = tmp_path / "plain.xyz"
    text = "1\n\nH 0 0 0\nVEC1 4 0 0\nVEC2 0 4 0\nVEC3 0 0 4\n\n1\n\nH 1 0 0\n"
    path.write_text(text)
    first, second = iread_structures(path)
    assert first.cell.lengths().tolist() == [4, 4, 4]
    assert second.positions.tolist() == [[1, 0, 0]]


def test_what_is_no_frame_is_an_error_and_not_the_end(raw, tmp_path):
    path = tmp_path / "end.xyz"
    path.write_bytes(raw + b"end of file\n" + raw)
    with pytest.raises(DataError, match="number of atoms, found 'end of file'"):
        read_frames(path)


def test_other_files_are_not_taken_for_xyz(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("3\n1 2 3\n")
    assert not is_xyz(path)
    assert not is_xyz(tmp_path / "missing.txt")


def test_a_symbol_that_is_no_element_is_named(raw, tmp_path):
    path = tmp_path / "heavy.xyz"
    path.write_bytes(raw.replace(b"\nH ", b"\nD "))
    with pytest.raises(DataError, match="'D' is not an element symbol.*H for deuterium"):
        read_frames(path)


@pytest.mark.parametrize("name", ["c.traj", "c.xyz", "c.db", "c.json"])
def test_forces_on_constrained_atoms_are_the_labels(tmp_path, name):
    frames = labelled()
    forces = np.concatenate([atoms.get_forces() for atoms in frames])
    for atoms in frames:
        atoms.set_constraint(FixAtoms([0, 1, 2]))
    if name.endswith((".db", ".json")):
        with ase.db.connect(tmp_path / name) as database:
            for atoms in frames:
                database.write(atoms)
    else:
        ase.io.write(tmp_path / name, frames)
    np.testing.assert_allclose(read_frames(tmp_path / name).forces, forces, atol=1e-7)


def test_one_composition_with_two_charges_is_told(tmp_path, caplog):
    frames = labelled()
    for charge, atoms in enumerate(frames):
        atoms.info["charge"] = charge % 2
    ase.io.write(tmp_path / "ions.xyz", frames)
    with caplog.at_level(logging.WARNING):
        assert len(read_frames(tmp_path / "ions.xyz")) == 4
    assert "total charges of C2H6O differ: 0 (2 frames), 1 (2 frames)" in caplog.text
    assert "cannot tell them apart" in caplog.text


def test_one_charge_for_each_composition_is_nothing_to_tell(tmp_path, caplog):
    frames = labelled()
    for atoms in frames:
        atoms.info |= {"charge": 1, "spin": 2}
    ion = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], info={"charge": -1, "spin": 1})
    ion.calc = SinglePointCalculator(ion, energy=-2000.0, forces=np.full((2, 3), 0.1))
    ase.io.write(tmp_path / "ions.xyz", [*frames, ion])
    with caplog.at_level(logging.WARNING):
        read_frames(tmp_path / "ions.xyz")
    assert "differ" not in caplog.text


def test_atoms_that_overlap_across_the_boundary_are_noticed(tmp_path):
    frames = labelled()
    for atoms in frames:
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = True
        atoms.center()
    ase.io.write(tmp_path / "box.xyz", frames)
    assert len(read_frames(tmp_path / "box.xyz")) == 4
    frames[2].positions[:2] = [[0.05, 4, 4], [8.98, 4, 4]]
    ase.io.write(tmp_path / "box.xyz", frames)
    with pytest.raises(DataError, match=r"two atoms of frame 2 are 0\.07 Å apart"):
        read_frames(tmp_path / "box.xyz")


def test_hdf5_is_read_while_another_program_has_it_open(raw, expected, tmp_path):
    path, source = tmp_path / "frames.h5", tmp_path / "frames.xyz"
    source.write_bytes(raw)
    write_hdf5(read_frames(source), path)
    code = f"import h5py; f = h5py.File({str(path)!r}, 'a'); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(BlockingIOError):
            h5py.File(path, "r")
        np.testing.assert_allclose(read_frames(path).energies, expected)
        other.communicate(b"\n")


def test_separated_fragments_among_the_frames_can_be_trained_on(tmp_path):
    frames = labelled(12)
    for distance in (20.0, 30.0, 40.0, 50.0):
        apart = Atoms("CO", [[0, 0, 0], [distance, 0, 0]])
        apart.calc = SinglePointCalculator(apart, energy=-3000.0, forces=np.zeros((2, 3)))
        frames.append(apart)
    ase.io.write(tmp_path / "frames.xyz", frames)
    table = {
        "data": {"train": str(tmp_path / "frames.xyz"), "n_train": 12, "n_validation": 4},
        "model": {"name": "dimenet++", "hypers": SMALL["dimenet++"]},
        "optimiser": {"epochs": 1, "batch_size": 1},
        "run": {"directory": str(tmp_path / "run"), "device": "cpu"},
    }
    assert fit(config_from_table(table)) == tmp_path / "run" / "model.safetensors"

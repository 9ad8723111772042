"""Damaged files are named; faults of the program are not taken for them."""

import io
import pickle
import random
import zipfile
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from lkm_calc.commands.common import read_structures
from lkm_calc.compile.padding import Capacity
from lkm_calc.compile.programs import ProgramForces
from lkm_calc.files.ase_files import reading_by_ase
from lkm_calc.files.program_files import CompileError
from train.data.frames import DataError
from train.formats.arrays import DAMAGE, reading
from train.formats.files import read_ase
from train.formats.hdf5 import write_hdf5
from train.formats.md17 import read_md17
from train.formats.read import read_frames
from train.state import state
from train.state.state import StateError

from ..support import graph_of, rattled, rmd17_arrays, small_model, write_npz

BUGS = (AttributeError, NameError, TypeError)


def raised(error):
    def fail(*_arguments, **_more):
        raise error

    return fail


def mutations(content, count, seed):
    """Yield contents cut short, with a flipped bit, with other bytes, and with bytes left out."""
    rng = random.Random(seed)
    for k in range(count):
        changed, place = bytearray(content), rng.randrange(len(content))
        if k % 4 == 0:
            del changed[place:]
        elif k % 4 == 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif k % 4 == 2:
            changed[place : place + 8] = rng.randbytes(len(changed[place : place + 8]))
        else:
            del changed[place : place + rng.randrange(1, 40)]
        yield bytes(changed)


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_damaged_files_raise_is_told_with_the_file(kind):
    message = "x.npz is not a readable npz file.*truncated"
    with pytest.raises(DataError, match=message), reading(Path("x.npz"), "npz file"):
        raise kind("of this and that")


@pytest.mark.parametrize("bug", BUGS)
def test_what_faults_of_the_program_raise_is_not(bug):
    with pytest.raises(bug, match="of ours"), reading(Path("x.npz"), "npz file"):
        raise bug("of ours")


def test_locked_files_and_sizes_beyond_memory():
    with (
        pytest.raises(DataError, match="x cannot be read.*permissions"),
        reading(Path("x"), "file"),
    ):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(DataError, match="not enough memory to read x"), reading(Path("x"), "file"):
        raise MemoryError("Unable to allocate 8 EiB")


@pytest.mark.parametrize("name", ["stored.npz", "packed.npz", "frames.h5"])
def test_mutated_arrays(name, tmp_path):
    path = write_npz(tmp_path / "stored.npz", **rmd17_arrays(4))
    if name == "packed.npz":
        np.savez_compressed(tmp_path / name, **rmd17_arrays(4))
    elif name == "frames.h5":
        write_hdf5(read_md17(path, check_units=False), tmp_path / name)
    refused = 0
    for k, content in enumerate(mutations((tmp_path / name).read_bytes(), 200, seed=1)):
        if name == "frames.h5" and k % 4 in (1, 2):
            continue  # over some changed bytes libhdf5 loops for ever
        path = tmp_path / f"mutated{Path(name).suffix}"
        path.write_bytes(content)
        try:
            read_frames(path, check_units=False)
        except DataError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("bug", [*BUGS, KeyError, RuntimeError])
def test_ases_readers_may_raise_anything(bug, tmp_path, monkeypatch):
    rattled().write(tmp_path / "a.xyz")
    monkeypatch.setattr(ase.io, "read", raised(bug("of ASE's")))
    monkeypatch.setattr(ase.io, "iread", raised(bug("of ASE's")))
    # A KeyError that names no element is told as one of the file.
    told = "XYZError" if bug is KeyError else bug.__name__
    expected = rf"a.xyz is not a readable structure file \({told}: .*of ASE's"
    with pytest.raises(ValueError, match=expected):
        read_structures(str(tmp_path / "a.xyz"))
    with pytest.raises(DataError, match=expected):
        read_ase(tmp_path / "a.xyz")


def test_files_that_need_another_package_or_more_memory():
    message = r"a.nc \(No module named 'netCDF4'\). Install"
    with pytest.raises(ValueError, match=message), reading_by_ase("a.nc"):
        raise ModuleNotFoundError("No module named 'netCDF4'")
    message = "not enough memory to read .*a.traj"
    with pytest.raises(DataError, match=message), reading_by_ase("a.traj", DataError):
        raise MemoryError


@pytest.fixture
def saved(tmp_path):
    content = {"model": {"w": torch.ones(50)}, "identity": {"a": {"b": 1}}, "counters": {"step": 1}}
    torch.save(content, tmp_path / "state.pt")
    return tmp_path / "state.pt"


def test_a_mutated_training_state_is_refused_or_the_same(saved):
    expected, refused = repr(state._content(saved)), 0
    for content in mutations(saved.read_bytes(), 2000, seed=2):
        saved.write_bytes(content)
        try:
            assert repr(state._content(saved)) == expected
        except StateError:
            refused += 1
    assert refused > 1000


def test_a_tensor_marked_as_a_folder(saved):
    with zipfile.ZipFile(saved) as archive:
        start = archive.start_dir
    content = bytearray(saved.read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"data/0", start) - 60)
    content[entry + 38] = 0x10
    saved.write_bytes(content)
    with pytest.raises(StateError, match="data/0 is damaged"):
        state._content(saved)


def test_files_that_are_no_training_state(tmp_path):
    packed = io.BytesIO()
    torch.save([1, 2], packed)
    others = (b"", b"text", pickle.dumps({}), packed.getvalue())
    for content in others:
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(StateError, match="not a readable training state"):
            state._content(tmp_path / "state.pt")


@pytest.mark.parametrize(
    ("error", "expected"),
    [(RuntimeError("of torch"), CompileError), (OSError("full"), CompileError)]
    + [(bug("of ours"), bug) for bug in BUGS],
)
def test_only_compilers_failures_are_taken_for_a_missing_compiler(error, expected, monkeypatch):
    monkeypatch.setattr("lkm_calc.compile.aot.make_fx", raised(error))
    model = small_model()
    graph = model.prepare(graph_of(rattled("H2O"), model))
    with pytest.raises(expected, match=str(error)):
        ProgramForces(model)._make(graph, Capacity.of(graph, 0.1), False)

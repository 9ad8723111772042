"""Frames of dynamics: labels, temperature, resuming, failures."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from train.config import ConfigError, PretrainingConfig
from train.data import DataError, Frames
from train.formats import read_hdf5
from train.sampling import sample_frames

from ...support import rmd17_arrays, spring_labels
from .springs import NAME, Springs

FEW = PretrainingConfig(calculator=NAME, frames=90, temperature=500.0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("calls", "interrupted"):
        monkeypatch.setattr(Springs, name, 0)
    monkeypatch.setattr(Springs, "fails", ())


def ethanol(count=8):
    arrays = rmd17_arrays(count)
    coords = arrays["coords"]
    nothing = np.zeros(coords.shape)
    numbers = arrays["nuclear_charges"].astype(np.int64)
    return Frames.of_one_molecule(numbers, coords, np.zeros(count), nothing)


def sampled(path, options=FEW, seed=0, stop=()):
    assert sample_frames(options, ethanol(), path / "frames.h5", seed, stop)
    return read_hdf5(path / "frames.h5")


def test_labels_are_those_of_the_calculator(tmp_path):
    frames = sampled(tmp_path)
    assert len(frames) == 90
    positions = frames.positions.reshape(90, -1, 3)
    energies, forces = spring_labels(positions)
    assert frames.energies == pytest.approx(energies + 4321.0)
    assert frames.forces == pytest.approx(forces.reshape(-1, 3))
    assert not (tmp_path / "trajectories").exists()
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=(2, 3))
    assert distances[~np.eye(90, dtype=bool)].min() > 0.05, "no frame occurs twice"


def test_potential_energies_follow_the_temperature(tmp_path):
    means = {}
    for kelvin in (200.0, 800.0):
        options = PretrainingConfig(calculator=NAME, frames=1200, temperature=kelvin)
        frames = sampled(tmp_path / str(kelvin), options)
        means[kelvin] = frames.energies.mean() - 321.0
    # Harmonic in the distances: 21 vibrations with kT/2 each.
    for kelvin, mean in means.items():
        assert mean == pytest.approx(21 * 8.617e-5 * kelvin / 2, rel=0.2)


def test_the_seed_decides(tmp_path):
    one, same, other = (
        sampled(tmp_path / name, seed=seed).positions
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    )
    assert np.array_equal(one, same)
    assert not np.allclose(one[: len(one) // 2], other[: len(one) // 2], atol=0.1)


def test_an_interrupted_call_continues_to_the_same_frames(tmp_path):
    expected = sampled(tmp_path / "whole")
    Springs.calls, path = 0, tmp_path / "parts" / "frames.h5"

    class Signals(list):
        def __bool__(self):
            return Springs.calls > 400

    assert not sample_frames(FEW, ethanol(), path, 0, Signals())
    assert not path.exists()
    finished = sorted(p.stem for p in (tmp_path / "parts" / "trajectories").iterdir())
    assert finished == ["1", "2"]
    found = sampled(tmp_path / "parts")
    for name in ("positions", "energies", "forces", "starts"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    calls = Springs.calls
    assert sample_frames(FEW, ethanol(), path, 0)
    assert Springs.calls == calls, "a finished file is kept"


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"temperature": 300.0}, "temperature was 500.0, now 300.0"), ({"frames": 91}, "frames was")],
)
def test_a_file_of_other_settings_is_refused(tmp_path, changes, text):
    sampled(tmp_path)
    options = PretrainingConfig(**{**vars(FEW), **changes})
    with pytest.raises(ConfigError, match=f"other settings: {text}.*new run.directory"):
        sampled(tmp_path, options)


LENNARD_JONES = PretrainingConfig("ase.calculators.lj:LennardJones", frames=50, temperature=50.0)


def chains(sizes):
    """Return a chain of neon atoms of each size."""
    found = []
    for n in sizes:
        positions = np.zeros((1, n, 3))
        positions[0, :, 2] = 1.12 * np.arange(n)
        found.append(Frames.of_one_molecule(np.full(n, 10), positions, np.zeros(1), positions))
    return Frames.joined(found)


@pytest.mark.parametrize(("most", "expected"), [(30, 25), (10, 10)])
def test_trajectories_of_different_molecules(tmp_path, most, expected):
    path = tmp_path / "frames.h5"
    assert sample_frames(LENNARD_JONES, chains(range(2, 27)), path, 0, trajectories=most)
    frames = read_hdf5(path)
    assert len(frames) == len(np.unique(frames.energies)) == 50
    assert len(np.unique(frames.sizes)) == expected
    assert set(np.unique(frames.sizes, return_counts=True)[1]) == {50 // expected}


def test_no_more_trajectories_than_frames(tmp_path):
    path = tmp_path / "frames.h5"
    assert sample_frames(replace(LENNARD_JONES, frames=3), chains(range(2, 27)), path, 0)
    assert len(np.unique(read_hdf5(path).sizes)) == 3


def test_frames_of_other_structures_are_not_used(tmp_path):
    path = tmp_path / "frames.h5"
    assert sample_frames(LENNARD_JONES, chains(range(2, 12)), path, 0, trajectories=10)
    for changes in ({"trajectories": 5}, {"structures": chains(range(3, 13))}):
        given = {"structures": chains(range(2, 12)), "trajectories": 10} | changes
        with pytest.raises(ConfigError, match=f"{next(iter(changes))} was"):
            sample_frames(LENNARD_JONES, path=path, seed=0, **given)


def test_failing_trajectories_are_left_out(tmp_path, caplog):
    Springs.fails = (range(200, 201), range(450, 451))
    frames = sampled(tmp_path)
    assert 45 <= len(frames) < 90
    assert f"failed in 2 of 8 trajectories (no convergence): {len(frames)} frames" in caplog.text


def test_a_calculator_that_fails_is_an_error(tmp_path):
    Springs.fails = (range(1, 10**6),)
    with pytest.raises(DataError, match="gave only 0 of 90 frames. Check that it can compute"):
        sampled(tmp_path)
    assert not (tmp_path / "frames.h5").exists()


def test_single_atoms_are_no_start(tmp_path):
    alone = Frames(
        numbers=np.ones(2, int),
        positions=np.zeros((2, 3)),
        energies=np.zeros(2),
        starts=np.arange(3),
    )
    with pytest.raises(DataError, match="more than one atom"):
        sample_frames(FEW, alone, tmp_path / "frames.h5", 0)


@pytest.mark.parametrize("stress", [True, False])
def test_crystals_keep_their_cell(tmp_path, stress):
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    crystal = Frames(
        numbers=atoms.numbers,
        positions=atoms.positions,
        energies=np.zeros(1),
        starts=np.array([0, len(atoms)]),
        cells=atoms.cell.array[None],
        pbc=atoms.pbc[None],
    )
    options = PretrainingConfig("ase.calculators.emt:EMT", frames=20, temperature=300.0)
    assert sample_frames(options, crystal, tmp_path / "frames.h5", 0, stress=stress)
    frames = read_hdf5(tmp_path / "frames.h5")
    assert frames.pbc.all()
    assert frames.cells == pytest.approx(np.tile(atoms.cell.array, (20, 1, 1)))
    if stress:
        last = frames.atoms(19)
        last.calc = EMT()
        assert frames.stress[19] == pytest.approx(last.get_stress(voigt=False))
    else:
        assert frames.stress is None


def test_only_frames_with_the_same_labels_are_joined():
    frames = ethanol(3)
    assert np.array_equal(Frames.joined([frames, frames]).starts, 9 * np.arange(7))
    for parts in ((frames, replace(frames, forces=None)), (replace(frames, forces=None), frames)):
        with pytest.raises(DataError, match="1 of 2 sets of frames to join have no forces"):
            Frames.joined(parts)

import json

import ase
import ase.io
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import pdist

from lkm_calc import LKMCalculator, load_model, save_model
from lkm_calc.potential.checkpoint import read_header
from lkm_calc.uncertainty.calibration import calibration_of
from train.__main__ import main
from train.config import config_from_table
from train.data.frames import Frames
from train.data.loader import GraphFrames
from train.fit.loop import fit
from train.formats.read import read_frames
from train.report.calibration import calibrate, closest_distances

from ...support import crystal, graph_of, rmd17_arrays, small_model, write_npz


@pytest.fixture
def springs(tmp_path):
    return write_npz(tmp_path / "springs.npz", **rmd17_arrays(30))


@pytest.fixture
def path(tmp_path):
    model = small_model()
    model.calibrate(1.0, {1: -13.0, 6: -1000.0, 8: -2000.0}, [1, 6, 8])
    save_model(model, tmp_path / "model.safetensors", {"seed": 7})
    return tmp_path / "model.safetensors"


def graph_frames(frames, model):
    return GraphFrames(frames, model, model.device)


def calibrate_command(*arguments):
    return main(["calibrate", *map(str, arguments), "--device", "cpu"])


def test_quantiles_and_errors_by_hand(springs, path):
    model, frames = load_model(path), read_frames(springs)
    found, latent = calibrate(model, graph_frames(frames, model), graph_frames(frames, model), 7)
    errors, distances = [], []
    for f in range(len(frames)):
        rows = slice(frames.starts[f], frames.starts[f + 1])
        atoms = structure(frames, rows)
        forces = LKMCalculator(model).evaluate([atoms])[0]["forces"]
        errors.append(np.linalg.norm(forces - frames.forces[rows], axis=1))
        embeddings = model(graph_of(atoms, model)).embeddings
        distances.append(latent.distance(atoms.numbers, embeddings).numpy())
    error, distance = np.concatenate(errors), np.concatenate(distances)
    assert found.frames == 30
    assert found.force_error["99"] == pytest.approx(np.quantile(error, 0.99))
    assert found.force_error["max"] == pytest.approx(error.max())
    carbon = frames.numbers == 6
    for number in (1, 6, 8):
        assert distance[frames.numbers == number].max() == pytest.approx(1)
    expected = found.force_errors(frames.numbers, distance)
    assert np.median(error[carbon]) == pytest.approx(np.median(expected[carbon]), rel=0.3)


def structure(frames, rows):
    return ase.Atoms(frames.numbers[rows], frames.positions[rows])


def test_the_map_does_not_fall(springs, path):
    model, frames = load_model(path), read_frames(springs)
    found, _ = calibrate(model, graph_frames(frames, model), graph_frames(frames, model), 16)
    hydrogen = found.expected_error["H"]
    assert len(hydrogen["error"]) == 180 // 20
    for curve in found.expected_error.values():
        assert (np.diff(curve["distance"]) > 0).all()
        assert (np.diff(curve["error"]) >= 0).all()


def test_closest_distances(springs):
    model, frames = small_model(), read_frames(springs)
    model.calibrate(1.0, {}, [1, 6, 7, 8])
    found = closest_distances(graph_frames(frames, model), model, 7)
    assert set(found) == {
        "H-H", "H-C", "H-N", "H-O", "C-C", "C-N", "C-O", "N-N", "N-O", "O-O",
    }  # fmt: skip
    carbons = frames.positions.reshape(30, 9, 3)[:, frames.numbers[:9] == 6]
    assert found["C-C"] == pytest.approx(min(pdist(pair)[0] for pair in carbons))
    assert found["N-O"] == found["O-O"] == model.cutoff, "never seen"
    assert 0.6 < found["H-C"] < found["H-H"]


def test_images_count():
    model, atoms = small_model(), crystal()
    frames = Frames(
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        energies=np.zeros(1),
        starts=np.array([0, 4]),
        cells=np.asarray(atoms.cell)[None],
        pbc=np.ones((1, 3), dtype=bool),
    )
    model.calibrate(1.0, {}, [1, 6, 8, 14])
    found = closest_distances(graph_frames(frames, model), model, 1)
    assert found["C-C"] == pytest.approx(np.linalg.norm(atoms.cell, axis=1).min(), rel=0.02)


def test_the_command_adds_to_a_file_and_leaves_the_weights(springs, path, tmp_path, capsys):
    other = write_npz(tmp_path / "other.npz", **rmd17_arrays(20, seed=3))
    before, header = load_file(path), read_header(path)
    assert calibrate_command(path, other, "--train", springs) == 0
    after = load_file(path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(name.startswith("latent.") for name in after.keys() - before.keys())
    model = load_model(path)
    assert model.provenance["seed"] == 7
    found = calibration_of(model)
    header["provenance"]["calibration"] = found.as_data()
    assert read_header(path) == header
    assert found.as_data() == json.loads(capsys.readouterr().out)
    assert found.frames == 20
    frames = read_frames(springs)
    assert found.closest == closest_distances(graph_frames(frames, model), model, 16)
    assert calibrate_command(path, other, "--train", springs) == 0, "again"
    assert calibration_of(load_model(path)) == found
    again = load_file(path)
    assert again.keys() == after.keys()
    assert all(torch.equal(again[name], after[name]) for name in after)


def test_refusals_leave_the_file_alone(springs, path, caplog):
    before = path.read_bytes()
    assert calibrate_command(path, springs) == 1
    assert "not the file that the model was trained on. Specify that file with" in caplog.text
    assert calibrate_command("rmd17-ethanol", springs) == 1
    assert "no file 'rmd17-ethanol'. Specify the path" in caplog.text
    assert path.read_bytes() == before


def test_frames_without_forces(springs, path, tmp_path, caplog):
    frames = read_frames(springs)
    atoms = structure(frames, slice(0, 9))
    atoms.info["energy"] = -4000.0
    ase.io.write(tmp_path / "energies.extxyz", atoms)
    assert calibrate_command(path, tmp_path / "energies.extxyz", "--train", springs) == 1
    assert "have no forces" in caplog.text


def test_training_does_it_and_the_own_file_gives_the_same(springs, tmp_path, capsys):
    config = config_from_table(
        {
            "data": {"train": str(springs), "n_train": 20, "n_validation": 10},
            "model": {"name": "dimenet++", "hypers": {"hidden": 16, "num_blocks": 2}},
            "optimiser": {"epochs": 1, "batch_size": 5},
            "run": {"directory": str(tmp_path / "run"), "device": "cpu"},
        }
    )
    path = fit(config)
    trained = calibration_of(load_model(path))
    assert trained.frames == 10
    assert calibrate_command(path, springs) == 0
    again = calibration_of(load_model(path))
    assert again.closest == trained.closest
    assert again.force_error == pytest.approx(trained.force_error, rel=1e-3)
    split = np.load(tmp_path / "run" / "split.npz")
    frames = read_frames(springs).select(split["train"])
    model = load_model(path)
    assert trained.closest == closest_distances(graph_frames(frames, model), model, 16)
    atoms = structure(frames, slice(0, 9))
    atoms.calc = LKMCalculator(path, on_extrapolation="warn")
    atoms.get_potential_energy()
    assert atoms.calc.extras["latent_distance"].shape == (9,)
    assert load_model(tmp_path / "run" / "last.safetensors").latent is None

"""Active learning end to end, with springs as the reference method."""

import json
import os
import signal
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule

from lkm_calc import LKMCalculator, load_model
from lkm_calc.md import MDError, Simulation
from train.__main__ import main
from train.config import ConfigError, config_from_table
from train.data import DataError
from train.fit.step import Stepper
from train.formats import read_hdf5
from train.learn import (
    LearnSettings,
    label_structures,
    learn,
    rounds,
    training,
    write_learning_page,
)
from train.learn.rounds import read_all
from train.learn.training import calibrated_copy, compared, trained_model

from ...support import SMALL, rattled, spring_labels
from ..sampling.springs import FAILING, NAME, Springs
from ..sampling.test_dynamics import fresh  # noqa: F401

CONFIG = config_from_table(
    {
        "data": {"train": "set by learn"},
        "model": {"name": "ace", "hypers": SMALL["ace"]},
        "optimiser": {"epochs": 4, "warmup_steps": 3, "ema_decay": 0.9},
        "run": {"device": "cpu", "validate_every": 20},
    }
)
SETTINGS = LearnSettings(labels=NAME, first=20, per_round=5, picoseconds=0.04, rounds=2)


def run(directory, **changes):
    return learn(molecule("CH3CH2OH"), replace(SETTINGS, **changes), CONFIG, directory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole run: folder, rounds, and number of calls of the calculator."""
    directory = tmp_path_factory.mktemp("learn")
    Springs.calls = 0
    return directory, run(directory), Springs.calls


def test_rounds_add_labelled_structures(whole):
    tmp_path, found, _ = whole
    assert [one.number for one in found] == [1, 2]
    assert found[0].frames == 20
    assert found[1].frames == 20 + found[0].labelled
    assert 0 < found[0].labelled <= 5
    frames = read_hdf5(tmp_path / "frames.h5")
    assert len(frames) == found[1].frames + found[1].labelled
    energies, forces = spring_labels(frames.positions.reshape(len(frames), -1, 3))
    assert frames.energies == pytest.approx(energies + 4321.0)
    assert frames.forces == pytest.approx(forces.reshape(-1, 3), abs=1e-6)
    outside = read_all(tmp_path / "round-1" / "outside.extxyz")
    assert len(outside) == found[0].outside
    added = frames.atoms(20)
    assert any(np.allclose(added.positions, atoms.positions, atol=1e-6) for atoms in outside)
    model = load_model(tmp_path / "model.safetensors")
    assert model.provenance["config"]["run"]["finetune"] == "model.safetensors"
    assert model.provenance["config"]["optimiser"]["learning_rate"] == 1e-3
    saved = json.loads((tmp_path / "rounds.json").read_text())["rounds"]
    assert [one["outside"] for one in saved] == [one.outside for one in found]
    page = write_learning_page(found, tmp_path, "Springs").read_text()
    assert "2 rounds" in page


def test_ends_when_nothing_is_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WRONG", 100.0)  # this model would be too bad
    found = run(tmp_path, picoseconds=0.001, rounds=5)
    assert len(found) == 1
    assert (found[0].outside, found[0].labelled, found[0].picoseconds) == (0, 0, 0.001)


@pytest.mark.parametrize("where", ["first", "training", "simulation", "labels"])
def test_a_stopped_call_continues_bit_for_bit(whole, tmp_path, monkeypatch, where):
    directory, _, total = whole
    steps, moves = [], []
    step, advance = Stepper.step, Simulation._advance

    def interrupt():
        os.kill(os.getpid(), signal.SIGTERM)

    def stepping(*arguments):
        steps.append(1)
        if where == "training" and len(steps) == 6:
            interrupt()
        step(*arguments)

    def advancing(*arguments):
        moves.append(1)
        if where == "simulation" and len(moves) == 60:
            interrupt()
        advance(*arguments)

    monkeypatch.setattr(Stepper, "step", stepping)
    monkeypatch.setattr(Simulation, "_advance", advancing)
    if where in ("first", "labels"):
        Springs.interrupted = 300 if where == "first" else total - 2
    assert run(tmp_path) is None
    assert not (tmp_path / "model.safetensors").exists()
    assert run(tmp_path) is not None
    expected, found = (read_hdf5(folder / "frames.h5") for folder in (directory, tmp_path))
    for name in ("positions", "energies", "forces"):
        assert np.array_equal(getattr(expected, name), getattr(found, name))


def test_a_bad_model_is_not_the_last_one(tmp_path):
    found = run(tmp_path / "short", picoseconds=0.11, rounds=2)
    assert not any(one.finished for one in found)
    assert all(one.labelled for one in found)
    with pytest.raises(DataError, match="wrong on all validation frames"):
        run(tmp_path / "shorter", picoseconds=0.001)


def test_frames_cannot_be_chosen(tmp_path):
    config = replace(CONFIG, data=replace(CONFIG.data, n_train=10))
    with pytest.raises(ConfigError, match="data.n_train is 10, but active learning chooses"):
        learn(molecule("CH3CH2OH"), SETTINGS, config, tmp_path)


def test_a_failed_simulation_is_not_repeated(tmp_path, monkeypatch):
    advance, moves = Simulation._advance, []

    def failing(self, *arguments):
        moves.append(1)
        if len(moves) == 70:
            raise MDError("Stopped at step 70: it failed")
        return advance(self, *arguments)

    monkeypatch.setattr(Simulation, "_advance", failing)
    first = run(tmp_path, rounds=1)
    assert first[0].failure == "Stopped at step 70"
    assert first[0].picoseconds > 0
    assert run(tmp_path, rounds=1) == first


def test_other_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WRONG", 100.0)
    run(tmp_path, picoseconds=0.001)
    with pytest.raises(ConfigError, match="temperature was 500.0, is 400.0"):
        run(tmp_path, temperature=400.0)
    settings = replace(SETTINGS, picoseconds=0.001)
    with pytest.raises(ConfigError, match="positions was"):
        learn(rattled("CH3CH2OH"), settings, CONFIG, tmp_path)


def test_first_labels_that_all_fail_are_an_error(tmp_path):
    Springs.fails = (range(1, 10**6),)
    with pytest.raises(DataError, match="gave only 0 of 20 frames"):
        run(tmp_path)
    Springs.fails = ()
    with pytest.raises(DataError, match="failed for all structures"):
        run(tmp_path / "other", sampler=NAME, labels=FAILING)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"rounds": 0}, "rounds is 0"),
        ({"first_temperature": -5.0}, "first_temperature is -5.0"),
        ({"first": 19}, "first is 19; a training needs at least 20"),
        ({"labels": "pm7"}, "There is no calculator 'pm7'"),
        ({"labels": "dft {structures} {labels}"}, "need a calculator for the first structures"),
    ],
)
def test_settings_are_checked(tmp_path, changes, text):
    with pytest.raises(ConfigError, match=text):
        run(tmp_path, **changes)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "WRONG", 100.0)
    structure, config, output = (tmp_path / name for name in ("ethanol.xyz", "small.toml", "out"))
    molecule("CH3CH2OH").write(structure)
    config.write_text(
        '[model]\nname = "ace"\n[model.hypers]\nnum_channels = 4\nnum_interactions = 1\n'
        "[optimiser]\nepochs = 50\n"
    )
    words = ["learn", str(structure), "--config", str(config), "--output", str(output)]
    words += ["--first", "20", "--per-round", "3", "--rounds", "1"]
    assert main([*words, "--labels", "pm7"]) == 1
    assert main([*words, "--labels", NAME, "--ps", "0.2"]) == 4
    assert main([*words, "--labels", NAME, "--ps", "0.2", "--temperature", "400"]) == 1
    near = tmp_path / "near"
    words[words.index(str(output))] = str(near)
    assert main([*words, "--labels", NAME, "--ps", "0.001"]) == 0
    names = {"model.safetensors", "frames.h5", "rounds.json", "learn.json", "learn.html", "round-1"}
    assert names <= {path.name for path in near.iterdir()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 100),
        (["--finetune", "rmd17-base"], 25),
        (["--run.finetune", "rmd17-base"], 25),
        (["--finetune", "rmd17-base", "--first", "40"], 40),
        (["--first", "20"], 20),
    ],
)
def test_a_base_needs_fewer_first_structures(tmp_path, monkeypatch, words, expected):
    asked = []
    monkeypatch.setattr(
        "train.commands.learn.learn", lambda _, settings, *rest: asked.append(settings.first)
    )
    structure = tmp_path / "ethanol.xyz"
    molecule("CH3CH2OH").write(structure)
    assert main(["learn", str(structure), "--labels", NAME, *words]) == 3
    assert asked == [expected]


def test_frames_stay_in_their_set(whole):
    directory, found, _ = whole
    sets = [
        {
            name: read_hdf5(directory / f"round-{k}" / f"{name}.h5")
            for name in ("train", "validation")
        }
        for k in (1, 2)
    ]
    assert (len(sets[0]["train"]), len(sets[0]["validation"])) == (16, 4)
    for name, added in (
        ("train", (found[0].labelled + 1) // 2),
        ("validation", found[0].labelled // 2),
    ):
        before, after = (one[name] for one in sets)
        assert len(after) == len(before) + added
        assert np.array_equal(after.positions[: len(before.positions)], before.positions)


def test_the_guard_is_calibrated_on_what_the_model_predicts_well(tmp_path, monkeypatch):
    images = [rattled("CH3CH2OH", amplitude=0.05, seed=k) for k in range(40)]
    stretched = rattled("CH3CH2OH", amplitude=0.05, seed=40)
    stretched.positions[8] += 1.5 * (stretched.positions[8] - stretched.positions[0])
    frames = label_structures([*images, stretched], NAME, tmp_path / "labels").frames
    held_out = np.arange(41) >= 30
    config = replace(CONFIG, optimiser=replace(CONFIG.optimiser, epochs=60))
    place = tmp_path / "round-1"
    trained = trained_model(config, place, None, frames.select(np.arange(40)), held_out[:40])
    path = place / "model.safetensors"

    def distance_of():
        calibrated_copy(trained, path, frames, held_out, 8)
        atoms = stretched.copy()
        atoms.calc = LKMCalculator(path, "cpu", on_extrapolation="warn")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms.get_forces()
        return atoms.calc.extras["latent_distance"].max()

    assert not compared(trained, frames, 8).right[40]
    assert distance_of() > 1.3
    monkeypatch.setattr(training, "WRONG", 100.0)  # even that frame would be right
    assert distance_of() == pytest.approx(1.0)


@pytest.mark.parametrize("closest", [False, True])
def test_a_model_that_is_right_is_kept(tmp_path, monkeypatch, closest):
    """Not if atoms were too close, of which only training changes the threshold."""

    def always(path, frames, batch_size):
        return training.Comparison(1.0, np.ones(len(frames), dtype=bool))

    def outside(file):
        found = read_all(file)
        for atoms in found:
            atoms.info = {"closest": 0.5} if closest else {"latent_distance": 1.4}
        return found

    monkeypatch.setattr(rounds, "compared", always)
    monkeypatch.setattr(rounds, "read_all", outside)
    found = run(tmp_path)
    assert [one.number for one in found] == [1, 2]
    assert found[0].outside > 0
    assert found[0].new_force_mae == 1.0
    assert found[1].frames == 20 + found[0].labelled
    assert (tmp_path / "round-2" / "training").exists() == closest
    models = [load_model(tmp_path / f"round-{k}" / "model.safetensors") for k in (1, 2)]
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, other[name]) for name, value in one.items()) != closest
    assert models[0].provenance["calibration"] != models[1].provenance["calibration"]

"""lkm-train as a user types it."""

import json
import logging
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from lkm_calc import LKMCalculator, build_model, load_model
from train.__main__ import main
from train.config import read_config
from train.configs import CONFIGS

from ..support import SMALL, rattled, rmd17_arrays, write_npz


@pytest.fixture
def config(tmp_path):
    data = write_npz(tmp_path / "springs.npz", **rmd17_arrays(30))
    hypers = "\n".join(f"{k} = {v}" for k, v in SMALL["dimenet++"].items())
    path = tmp_path / "small.toml"
    path.write_text(
        f"[data]\ntrain = '{data}'\nn_train = 20\nn_validation = 8\n"
        f"[model]\nname = 'dimenet++'\n[model.hypers]\n{hypers}\n"
        f"[optimiser]\nepochs = 2\nbatch_size = 5\n"
        f"[run]\ndirectory = '{tmp_path / 'run'}'\ndevice = 'cpu'\n"
    )
    return path


@pytest.fixture(autouse=True)
def messages(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_fit_and_evaluate(config, tmp_path, capsys, messages):
    assert main(["fit", str(config), "--loss.gamma", "0.1"]) == 0
    assert "validation errors" in messages.text
    model = tmp_path / "run" / "model.safetensors"
    assert load_model(model).provenance["config"]["loss"]["gamma"] == 0.1
    assert main(["evaluate", str(model), str(tmp_path / "springs.npz")]) == 0
    errors = json.loads(capsys.readouterr().out)
    assert errors["force_mae"] > 0
    assert errors["energy_per_atom_mae"] == pytest.approx(errors["energy_mae"] / 9)


def test_a_run_that_was_stopped_says_how_to_go_on(config, messages):
    assert main(["fit", str(config), "--stop-after", "3"]) == 3
    assert "Run the same command to continue" in messages.text
    assert main(["fit", str(config)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "CONFIG", "--optimiser.lr", "1"], "Unknown option optimiser.lr"),
        (["fit", "CONFIG", "--data.train", "none.npz"], "none.npz does not exist"),
        (["fit", "none.toml"], "none.toml does not exist"),
        (["fit", "CONFIG", "--run.device", "abacus"], "run.device: device 'abacus' cannot be"),
        (["fit", "CONFIG", "--model.hypers.wings", "2"], "has no argument wings"),
        (["evaluate", "none.safetensors", "x.npz"], "no file 'none.safetensors'"),
        (["evaluate", "m", "x.npz", "--device", "abacus"], "--device: device 'abacus' cannot"),
        (["evaluate", "m", "x.npz", "--batch-size", "0"], "--batch-size is 0"),
    ],
)
def test_refusals_are_one_message_and_leave_nothing(config, arguments, message, tmp_path, messages):
    assert main([str(config) if a == "CONFIG" else a for a in arguments]) == 1
    assert message in messages.text
    assert not (tmp_path / "run").exists()


def test_help_is_a_manual(capsys):
    for arguments in (["--help"], ["fit", "--help"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 0
    text = capsys.readouterr().out
    assert "[optimiser]" in text
    assert "gamma = 0.0" in text


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "m", "d", "--wings", "2"])
    assert "--wings" in capsys.readouterr().err


def test_a_ready_configuration_by_name(tmp_path, monkeypatch, messages):
    monkeypatch.chdir(tmp_path)
    data = write_npz(tmp_path / "springs.npz", **rmd17_arrays(60))
    command = ["fit", "rmd17-pamnet", "--molecule", "ethanol", "--data", str(data)]
    small = ["--data.n_train=40", "--data.n_validation=15", "--model.hypers.hidden=8"]
    assert main([*command, *small, "--stop-after", "2"]) == 3
    config = json.loads(Path("runs/rmd17-pamnet-ethanol/config.json").read_text())
    assert config["model"]["name"] == "pamnet"
    assert main(["fit", "rmd71"]) == 1
    assert "no bundled configuration 'rmd71'" in messages.text


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_ready_configuration_is_valid(path):
    config = read_config(path, ["--data.train", "x.npz"])
    build_model(config.model.name, **config.model.hypers)


def test_a_committee_differs_in_its_seeds(config, tmp_path, messages):
    assert main(["fit", str(config), "--members", "2"]) == 0
    models = [load_model(tmp_path / "run" / f"member-{k}" / "model.safetensors") for k in (1, 2)]
    assert [m.provenance["config"]["run"]["seed"] for m in models] == [0, 1]
    weights = [m.embedding.atoms.weight for m in models]
    assert not torch.equal(*weights)
    assert main(["fit", str(config), "--members", "1"]) == 1
    assert "--members is 1" in messages.text


def test_a_finetuned_model_supports_the_elements_of_its_frames(config, tmp_path):
    """The energies of nitrogen would be those of another method."""
    words = ["--finetune", "rmd17-base", "--optimiser.epochs", "1"]
    assert main(["fit", str(config), *words]) == 0
    path = tmp_path / "run" / "model.safetensors"
    assert load_model("rmd17-base").elements == ("H", "C", "N", "O")
    assert load_model(path).elements == ("H", "C", "O")
    with pytest.raises(ValueError, match="does not support N"):
        LKMCalculator(path).evaluate([ase.Atoms("CN", [[0, 0, 0], [1.2, 0, 0]])])


def test_finetuning_starts_at_the_model_and_shifts_its_energies(config, tmp_path):
    assert main(["fit", str(config), "--optimiser.epochs", "20"]) == 0
    arrays = rmd17_arrays(30)
    arrays["energies"] = arrays["energies"] - 5000.0  # another method
    data = write_npz(tmp_path / "other.npz", **arrays)
    first = tmp_path / "run" / "model.safetensors"
    tuned = tmp_path / "tuned"
    options = ["--data", str(data), "--finetune", str(first), "--run.directory", str(tuned)]
    # One step at a rate of nothing: what is left is the model it started from.
    assert main(["fit", str(config), *options, "--optimiser.learning_rate", "1e-12"]) == 0
    errors = [
        load_model(p).provenance["validation_errors"]["force_mae"]
        for p in (first, tuned / "model.safetensors")
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
    told = load_model(tuned / "model.safetensors").provenance["config"]["run"]
    assert told["finetune"] == "model.safetensors", "without its folder"
    rows = [json.loads(x) for x in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["validation_energy_mae"] < 1000
    assert main(["fit", str(config), *options[:2], "--finetune", "none.safetensors"]) == 1


def test_check_data(tmp_path, capsys, messages):
    clean = write_npz(tmp_path / "springs.npz", **rmd17_arrays(200))
    picture = tmp_path / "report.png"
    assert main(["check-data", str(clean), "--output", str(picture)]) == 0
    assert "no faults" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000
    arrays = rmd17_arrays(200)
    arrays["forces"] = -arrays["forces"]
    assert main(["check-data", str(write_npz(tmp_path / "flipped.npz", **arrays))]) == 1
    assert "FAULT" in capsys.readouterr().out
    assert main(["check-data", str(tmp_path / "none.npz")]) == 2
    assert "none.npz does not exist" in messages.text


def test_a_property_of_qm9_from_file_to_card(tmp_path, capsys, messages):
    sizes = np.full(60, 3)
    generator = np.random.default_rng(0)
    water = molecule("H2O")
    positions = np.tile(water.positions, (60, 1)) + generator.normal(0, 0.05, (180, 3))
    arrays = {"N": sizes, "Z": np.tile(water.numbers, 60), "R": positions}
    arrays |= {name: generator.normal(1.85, 0.1, 60) for name in ("U0", "mu")}
    data = write_npz(tmp_path / "qm9.npz", **arrays)
    command = ["fit", "qm9", "--data", str(data), "--data.target", "mu", "--run.device", "cpu"]
    small = {"data.n_train": 40, "data.n_validation": 15, "data.n_test": 5}
    small |= {"model.hypers.hidden": 8}
    small |= {"optimiser.epochs": 2, "run.directory": tmp_path / "run"}
    options = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    assert main([*command, *options]) == 0
    card = (tmp_path / "run" / "card.md").read_text()
    assert "| units | energies Debye" in card
    assert "| energy MAE, 10⁻³ Debye |" in card
    assert "force" not in card.split("## Errors")[1].split("![")[0]
    model = tmp_path / "run" / "model.safetensors"
    assert main(["evaluate", str(model), str(data)]) == 0
    errors = json.loads(capsys.readouterr().out)
    assert "force_mae" not in errors
    assert errors["energy_mae"] < 500, "thousandths of a Debye: the property it learnt, not U0"
    assert main(["evaluate", str(model), str(data), "--target", "U0"]) == 1
    assert "trained on a property in Debye" in messages.text
    with pytest.raises(ValueError, match="predicts a property in Debye"):
        LKMCalculator(model)


def test_stress_of_a_periodic_set_is_learnt_and_resumed(tmp_path):
    generator, cells = np.random.default_rng(0), []
    for seed in range(30):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.set_cell(atoms.cell * generator.uniform(0.95, 1.05), scale_atoms=True)
        atoms.calc = EMT()
        atoms.get_stress()
        names = ("energy", "forces", "stress")
        labels = {name: atoms.calc.results[name] for name in names}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        cells.append(atoms)
    molecules = [rattled("H2O", seed=k) for k in range(8)]
    for atoms in molecules:  # codes write zeros where a stress makes no sense
        labels = {"energy": -10.0, "forces": np.zeros((3, 3)), "stress": np.zeros(6)}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    ase.io.write(tmp_path / "cells.extxyz", cells + molecules)
    config = tmp_path / "cells.toml"
    hypers = "\n".join(f"{k} = {v}" for k, v in SMALL["pamnet"].items())
    config.write_text(
        f"[data]\ntrain = '{tmp_path / 'cells.extxyz'}'\nn_train = 20\nn_validation = 8\n"
        f"check_units = false\n[loss]\nstress = 20.0\n[model]\nname = 'pamnet'\n"
        f"[model.hypers]\n{hypers}\n[optimiser]\nepochs = 12\nbatch_size = 5\nwarmup_steps = 5\n"
        "learning_rate = 5e-3\n"
        f"[run]\ndirectory = '{tmp_path / 'run'}'\ndevice = 'cpu'\n"
    )
    assert main(["fit", str(config), "--stop-after", "3"]) == 3
    assert main(["fit", str(config)]) == 0
    assert main(["fit", str(config), "--run.directory", str(tmp_path / "whole")]) == 0
    logs = [(tmp_path / d / "metrics.jsonl").read_text().splitlines() for d in ("run", "whole")]
    rows, whole = ([json.loads(line) for line in log] for log in logs)
    assert rows[-1]["validation_stress_mae"] == whole[-1]["validation_stress_mae"]
    assert rows[-1]["validation_stress_mae"] < 0.8 * rows[0]["validation_stress_mae"]


def test_download_of_what_there_is_not(tmp_path, messages):
    assert main(["download", "md71", str(tmp_path)]) == 1
    assert "no data set 'md71'" in messages.text

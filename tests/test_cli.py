"""lkm-train as a user types it."""

import json
import logging

import pytest

from lkm_calc import load_model
from train.__main__ import main

from .support import SMALL, rmd17_arrays, write_npz


@pytest.fixture
def config(tmp_path):
    data = write_npz(tmp_path / "springs.npz", **rmd17_arrays(30))
    hypers = "\n".join(f"{k} = {v}" for k, v in SMALL["dimenet++"].items())
    path = tmp_path / "small.toml"
    path.write_text(
        f"[data]\ntrain = '{data}'\nn_train = 20\nn_validation = 8\n"
        f"[model.hypers]\n{hypers}\n[optimiser]\nepochs = 2\nbatch_size = 5\n"
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
    assert "the same command goes on" in messages.text
    assert main(["fit", str(config)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "CONFIG", "--optimiser.lr", "1"], "Unknown configuration key optimiser.lr"),
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
    assert "gamma = 0.01" in text


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "m", "d", "--wings", "2"])
    assert "--wings" in capsys.readouterr().err

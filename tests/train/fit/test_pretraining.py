"""Runs with a first stage on frames of a cheap method."""

import json
import os
import signal
from dataclasses import replace

import pytest

from lkm_calc import load_model
from train.__main__ import main
from train.config import ConfigError, config_from_table
from train.fit import loop
from train.fit.loop import fit
from train.fit.step import Stepper
from train.formats import write_hdf5

from ..sampling.springs import NAME, Springs
from ..sampling.test_dynamics import ethanol, fresh  # noqa: F401
from .test_loop import assert_same, config, data, weights  # noqa: F401

FIRST = {
    "pretraining__calculator": NAME,
    "pretraining__frames": 60,
    "pretraining__epochs": 3,
    "pretraining__temperature": 600.0,
}


def rows_of(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_second_stage_starts_from_the_first(data, tmp_path):  # noqa: F811
    alone, run = tmp_path / "alone", tmp_path / "run"
    fit(config(data, alone, optimiser__epochs=1))
    longer = FIRST | {"pretraining__epochs": 40}
    path = fit(config(data, run, optimiser__epochs=1, **longer))
    first = load_model(run / "pretraining" / "model.safetensors")
    # The reference energies of the first stage are 4321 eV off; those of the second are not.
    assert first.provenance["validation_errors"]["energy_mae"] < 1000
    found, without = (rows_of(folder)[-1]["validation_force_mae"] for folder in (run, alone))
    assert found < 0.5 * without
    assert rows_of(run)[-1]["validation_energy_mae"] < 1000
    provenance = load_model(path).provenance
    assert provenance["config"]["pretraining"]["calculator"] == NAME
    assert f"pretrained on 60 frames of molecular dynamics at 600 K with {NAME}" in (
        (run / "card.md").read_text()
    )
    assert "min of pretraining" in (run / "card.md").read_text()
    assert "pretrain" not in (alone / "card.md").read_text()


@pytest.mark.parametrize("where", ["sampling", "first stage", "second stage"])
def test_a_stopped_run_resumes_bit_for_bit(data, tmp_path, monkeypatch, where):  # noqa: F811
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(config(data, whole, **FIRST))
    steps = {"first stage": 9, "second stage": 29}.get(where)
    Springs.calls, Springs.interrupted = 0, 0 if steps else 500
    step, calls = Stepper.step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        step(*arguments)

    monkeypatch.setattr(Stepper, "step", interrupted)
    assert fit(config(data, parts, **FIRST)) is None
    assert (parts / "pretraining" / "frames.h5").exists() == (where != "sampling")
    assert (parts / "state.pt").exists() == (where == "second stage")
    assert fit(config(data, parts, **FIRST)) == parts / "model.safetensors"
    for folder in ("", "pretraining"):
        assert_same(weights(whole / folder), weights(parts / folder))


def test_changed_settings_are_refused(data, tmp_path):  # noqa: F811
    fit(config(data, tmp_path, **FIRST))
    with pytest.raises(ConfigError, match="temperature was 600.0, now 500.0"):
        fit(config(data, tmp_path, **FIRST | {"pretraining__temperature": 500.0}))


def test_the_default_rate_is_lower_after_a_first_stage():
    table = {"data": {"train": "a.xyz"}}
    first = {"pretraining": {"calculator": "gfn2-xtb"}}
    assert config_from_table(table).optimiser.learning_rate == 4e-3
    assert config_from_table(table | first).optimiser.learning_rate == 1e-3
    started = config_from_table(table | {"run": {"finetune": "a.safetensors"}})
    assert started.optimiser.learning_rate == 1e-3
    given = first | {"optimiser": {"learning_rate": 4e-3}}
    assert config_from_table(table | given).optimiser.learning_rate == 4e-3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"pretraining": {"calculator": NAME, "frames": 19}}, "frames is 19; it must be at least"),
        ({"pretraining": {"temperature": 0.0}}, "pretraining.temperature is 0.0; it must be"),
        ({"pretraining": {"calculator": NAME}, "loss": {"raw_energies": True}}, "raw_energies and"),
        ({"pretraining": {"method": "pm7"}}, "Unknown option pretraining.method"),
    ],
)
def test_settings_are_checked(changes, text):
    with pytest.raises(ConfigError, match=text):
        config_from_table({"data": {"train": "a.xyz"}} | changes)


def test_the_command(data, tmp_path):  # noqa: F811
    path = tmp_path / "run.toml"
    path.write_text(
        f'[data]\ntrain = "{data}"\n[model.hypers]\nnum_channels = 4\nnum_interactions = 1\n'
        f'[optimiser]\nepochs = 2\n[run]\ndirectory = "{tmp_path / "run"}"\n'
        "[pretraining]\nframes = 40\nepochs = 1\n"
    )
    assert main(["fit", str(path), "--pretrain", NAME]) == 0
    assert (tmp_path / "run" / "pretraining" / "result.json").exists()
    assert main(["fit", str(path), "--pretrain", "pm7"]) == 1


def test_a_given_time_is_shared(data, tmp_path, monkeypatch):  # noqa: F811
    shares = []

    def epochs_within(seconds, *_):
        shares.append(seconds)
        return len(shares)

    monkeypatch.setattr(loop, "epochs_within", epochs_within)
    fit(config(data, tmp_path, **FIRST), seconds=1000.0)
    assert 0 < shares[0] < 500
    assert 500 < shares[1] < 1000
    assert [len(rows_of(tmp_path / folder)) for folder in ("pretraining", "")] == [1, 2]
    fit(config(data, tmp_path, **FIRST), seconds=1000.0)
    assert len(shares) == 2, "a continued run keeps its numbers of epochs"


def test_properties_are_refused(tmp_path):
    path = tmp_path / "gaps.h5"
    write_hdf5(replace(ethanol(60), forces=None, energy_unit="Debye"), path)
    with pytest.raises(ConfigError, match="a property in Debye, not energies"):
        fit(config(path, tmp_path / "run", **FIRST))

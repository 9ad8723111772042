"""Times in words, runs that last a given time, and runs that are prolonged."""

import argparse
import json

import pytest

from train.__main__ import main
from train.config import ConfigError
from train.fit.duration import duration, parse_time, prolonged
from train.fit.loop import fit
from train.state.state import StateError

from .test_loop import EPOCHS, assert_same, config, data, weights  # noqa: F401


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90min", 5400), ("1h30m", 5400), ("1.5 h", 5400), ("45s", 45)],
)
def test_times_are_read(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "0s", "-2h", "2h later", "nan s"])
def test_other_words_are_no_times(text):
    with pytest.raises(argparse.ArgumentTypeError, match="2h, 90min"):
        parse_time(text)


def test_times_are_written():
    assert [duration(s) for s in (4.0, 100.0, 7260.0)] == ["4 s", "2 min", "2 h 1 min"]


def test_prolonging_is_training_with_a_restart_bit_for_bit(data, tmp_path):  # noqa: F811
    run, whole = tmp_path / "run", tmp_path / "whole"
    fit(config(data, run))
    longer = prolonged(config(data, run), 6)
    assert (longer.optimiser.epochs, longer.optimiser.restart_epoch) == (6, EPOCHS)
    assert fit(longer, stop_after=27) is None
    assert prolonged(config(data, run), 6) == longer
    fit(longer)
    fit(config(data, whole, optimiser__epochs=6, optimiser__restart_epoch=EPOCHS))
    one, other = weights(run), weights(whole)
    for state in (one, other):  # counted anew after a restart
        state["counters"]["since_best"] = state["counters"]["since_cut"] = 0
    assert_same(one, other)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 6


def test_what_cannot_be_prolonged_is_refused(data, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match="no run in"):
        prolonged(config(data, run), 6)
    fit(config(data, run), stop_after=8)
    with pytest.raises(ConfigError, match=f"has {EPOCHS} epochs"):
        prolonged(config(data, run), EPOCHS - 1)
    with pytest.raises(StateError, match="loss.forces was 1.0, is 2.0"):
        fit(prolonged(config(data, run, loss__forces=2.0), 6))
    with pytest.raises(ConfigError, match="restart_epoch is 4; it must be less"):
        config(data, run, optimiser__restart_epoch=EPOCHS)


def test_a_time_becomes_epochs_and_the_same_command_continues(data, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "run"
    found = fit(config(data, run, optimiser__epochs=10**6), seconds=3.0)
    assert found == run / "model.safetensors"
    table = json.loads((run / "config.json").read_text())
    epochs = table["optimiser"]["epochs"]
    assert 1 <= epochs < 1000
    same = tmp_path / "same"
    fit(config(data, same, optimiser__epochs=epochs))
    assert_same(weights(run), weights(same))
    before = weights(run)
    fit(config(data, run, optimiser__epochs=10**6), seconds=100.0)
    assert_same(before, weights(run))


def test_the_command_refuses_what_does_not_go_together(data, tmp_path, caplog):  # noqa: F811
    words = ["fit", "rmd17", "--data", str(data), "--run.directory", str(tmp_path / "run")]
    assert main([*words, "--prolong", "9", "--time", "2h"]) == 1
    assert "--prolong cannot be combined" in caplog.text
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--time", "soon"])

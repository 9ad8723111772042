"""Validation frames from a file of their own, and test frames from the training file."""

import json

import numpy as np
import pytest
import torch

from lkm_calc import load_model
from train.__main__ import main
from train.config import ConfigError
from train.data import DataError, GraphFrames
from train.fit import fit
from train.formats import read_frames
from train.report import errors_of, own_split, predict
from train.state import StateError

from ...support import rmd17_arrays, rmd17_rows, write_npz
from .test_loop import assert_same, config, weights

AUTO = {"n_train": "auto", "n_validation": "auto"}


@pytest.fixture
def files(tmp_path):
    """Return the files of 30 training and 12 validation frames."""
    arrays = rmd17_arrays(42)
    parts = {"train": slice(0, 30), "validation": slice(30, 42)}
    return {
        name: write_npz(tmp_path / f"{name}.npz", **rmd17_rows(arrays, rows))
        for name, rows in parts.items()
    }


def separate(files, directory, **changes):
    options = {"validation": str(files["validation"])} | AUTO | changes
    named = {f"data__{name}": value for name, value in options.items()}
    return config(files["train"], directory, **named)


def test_all_frames_of_both_files_are_used(files, tmp_path, capsys):
    path = fit(separate(files, tmp_path / "run"))
    split = np.load(tmp_path / "run" / "split.npz")
    np.testing.assert_array_equal(split["train"], np.arange(30))
    np.testing.assert_array_equal(split["validation"], np.arange(12))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["files"]["validation"]["name"] == "validation.npz"
    assert result["config"]["data"]["validation"] == ""  # paths are private
    assert result["config"]["data"]["n_validation"] == 12
    card = (tmp_path / "run" / "card.md").read_text()
    assert "30 frames of train.npz (12 validation frames of validation.npz)" in card
    assert "--data.train train.npz --data.validation validation.npz" in card

    # The errors are those on the frames of that file.
    capsys.readouterr()
    assert main(["evaluate", str(path), str(files["validation"])]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["force_mae"] == pytest.approx(result["validation_errors"]["force_mae"], rel=1e-4)


def test_fewer_frames_are_drawn_at_random_and_found_again(files, tmp_path):
    path = fit(separate(files, tmp_path / "run", n_train=20, n_validation=5))
    split = np.load(tmp_path / "run" / "split.npz")
    assert (len(split["train"]), len(split["validation"])) == (20, 5)
    model = load_model(path)
    for name, other in (("train", "validation"), ("validation", "train")):
        found = own_split(model, read_frames(files[name]), files[name])
        np.testing.assert_array_equal(getattr(found, name), split[name])
        assert len(getattr(found, other)) == 0


def test_an_interrupted_run_continues_bit_for_bit(files, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(separate(files, whole))
    assert fit(separate(files, parts), stop_after=7) is None
    moved = files | {"validation": files["validation"].rename(tmp_path / "moved.npz")}
    fit(separate(moved, parts))
    assert_same(weights(whole), weights(parts))


def test_a_run_is_not_continued_with_other_validation_frames(files, tmp_path):
    fit(separate(files, tmp_path / "run"), stop_after=3)
    write_npz(files["validation"], **rmd17_arrays(12, seed=8))
    with pytest.raises(StateError, match=r"data.validation was .SHA-256"):
        fit(separate(files, tmp_path / "run"))
    same_numbers = {"data__n_train": 20, "data__n_validation": 5}
    fit(separate(files, tmp_path / "other", n_train=20, n_validation=5), stop_after=3)
    with pytest.raises(StateError, match="data.validation was .SHA-256"):
        fit(config(files["train"], tmp_path / "other", **same_numbers))


def test_the_report_shows_the_frames_of_that_file(files, tmp_path, caplog):
    fit(separate(files, tmp_path / "run"))
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "12 validation frames" in (tmp_path / "run" / "report.html").read_text()
    assert main(["report", str(tmp_path / "run"), "--data", str(files["train"])]) != 0
    assert "contains the training frames" in caplog.text


def test_a_model_is_calibrated_with_both_files(files, tmp_path, caplog):
    path = str(fit(separate(files, tmp_path / "run")))
    calibration = load_model(path).provenance["calibration"]
    train, validation = str(files["train"]), str(files["validation"])
    assert main(["calibrate", path, validation]) != 0
    assert "--train" in caplog.text
    assert main(["calibrate", path, train]) != 0
    assert "only training frames" in caplog.text
    assert main(["calibrate", path, validation, "--train", train]) == 0
    assert load_model(path).provenance["calibration"] == calibration

    path = str(fit(separate(files, tmp_path / "fewer", n_train=10)))
    calibration = load_model(path).provenance["calibration"]
    assert main(["calibrate", path, validation, "--train", train]) == 0
    assert load_model(path).provenance["calibration"] == calibration


def test_files_that_do_not_fit_are_refused(files, tmp_path):
    both = files | {"validation": files["train"]}
    with pytest.raises(ConfigError, match="are both"):
        fit(separate(both, tmp_path / "run"))
    with pytest.raises(DataError, match=r"n_validation = 13, but .*validation.npz has 12 frames"):
        fit(separate(files, tmp_path / "run", n_validation=13))
    arrays = rmd17_arrays(5)
    arrays["nuclear_charges"] = np.where(arrays["nuclear_charges"] == 8, 16, 7)
    strange = files | {"validation": write_npz(tmp_path / "strange.npz", **arrays)}
    with pytest.raises(DataError, match=r"strange\.npz: .*trained"):
        fit(separate(strange, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_test_frames_are_drawn_from_the_training_file(tmp_path):
    arrays = rmd17_arrays(42)
    data = write_npz(tmp_path / "all.npz", **arrays)
    sizes = {"data__n_train": "auto", "data__n_validation": 10}
    path = fit(config(data, tmp_path / "run", **sizes, data__n_test=12))
    split = np.load(tmp_path / "run" / "split.npz")
    assert {name: len(split[name]) for name in split} == dict(train=20, validation=10, test=12)
    everything = np.concatenate([split[name] for name in split])
    np.testing.assert_array_equal(np.sort(everything), np.arange(42))
    found = own_split(load_model(path), read_frames(data), data)
    np.testing.assert_array_equal(found.test, split["test"])

    # They neither train nor select.
    fit(config(data, tmp_path / "without", **sizes | {"data__n_train": 20}))
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "without"))

    result = json.loads((tmp_path / "run" / "result.json").read_text())
    parts = rmd17_rows(arrays, split["test"])
    drawn = read_frames(write_npz(tmp_path / "drawn.npz", **parts))
    model = load_model(path)
    errors = errors_of(predict(model, GraphFrames(drawn, model, torch.device("cpu")), 16))
    assert errors.figures() == pytest.approx(result["test_errors"])
    card = (tmp_path / "run" / "card.md").read_text()
    assert "20 frames of all.npz (10 validation frames, 12 test frames)" in card
    assert "12 test frames" in (tmp_path / "run" / "report.html").read_text()


def test_test_frames_may_be_requested_later(tmp_path):
    data = write_npz(tmp_path / "all.npz", **rmd17_arrays(42))
    sizes = {"data__n_train": 20, "data__n_validation": 10}
    assert fit(config(data, tmp_path / "run", **sizes), stop_after=7) is None
    path = fit(config(data, tmp_path / "run", **sizes, data__n_test=12))
    found = own_split(load_model(path), read_frames(data), data)
    np.testing.assert_array_equal(found.test, np.load(tmp_path / "run" / "split.npz")["test"])
    assert len(found.test) == 12
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "12 test frames" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("name", ["test", "validation"])
def test_test_frames_are_drawn_from_the_file_of_all_frames_only(name, files, tmp_path):
    changes = {f"data__{name}": str(files["validation"]), "data__n_test": 3}
    with pytest.raises(ConfigError, match=rf"data.n_test and data.{name} cannot be combined"):
        config(files["train"], tmp_path / "run", **changes)
    with pytest.raises(DataError, match=r"n_validation = 15 and data.n_test = 3 do not fit the 30"):
        fit(config(files["train"], tmp_path / "run", data__n_train=13, data__n_test=3))
    with pytest.raises(ConfigError, match=r"data.n_test is -1"):
        config(files["train"], tmp_path / "run", data__n_test=-1)

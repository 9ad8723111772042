"""The page that compares runs."""

import logging
from dataclasses import replace

import pytest

from train.__main__ import main
from train.config import ConfigError
from train.fit import fit
from train.report.compare import comparison, different_options

from ...page.browser import opened
from ...support import rmd17_arrays, write_npz
from .test_run_page import config_of, run_in

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("chemiscope", reason="chemiscope is not installed")


def test_options_that_differ_by_hand():
    first = {
        "model": {"name": "ace", "hypers": {"channels": 8}},
        "run": {"directory": "a", "seed": 0},
    }
    other = {"model": {"name": "mxmnet", "hypers": {}}, "run": {"directory": "b", "seed": 0}}
    assert different_options([first, other]) == {
        "model.name": ["ace", "mxmnet"],
        "model.hypers.channels": [8, None],
    }
    assert different_options([first, first]) == {}


def test_errors_and_curves_of_two_runs(tmp_path):
    runs = [run_in(tmp_path / name, rows) for name, rows in (("short", 5), ("long", 9))]
    page = comparison(runs)
    errors, options, *plots = page.below
    assert [row[0] for row in errors.rows] == ["short", "long"]
    assert "test force MAE, meV/Å" in errors.header
    assert errors.rows[1][errors.header.index("epochs")] == "9 of 150"
    assert options.rows == []
    assert options.note == "None but run.directory."
    assert [plot.title for plot in plots] == [
        "Training loss: energy", "Training loss: forces", "Learning rate"
    ]  # fmt: skip
    curve = plots[0].figure["data"][1]
    assert curve["name"] == "long"
    assert curve["x"] == [*range(1, 10)]


def test_data_are_compared_by_their_contents(tmp_path):
    first, other = (run_in(tmp_path / name) for name in ("first", "other"))
    moved = replace(other.config, data=replace(other.config.data, train="/elsewhere/water.npz"))
    runs = [first, replace(other, config=moved)]
    assert comparison(runs).below[1].rows == []
    files = {"train": {"name": "water.npz", "sha256": "cd" * 32}}
    provenance = other.header["provenance"] | {"files": files}
    runs[1] = replace(runs[1], header=other.header | {"provenance": provenance})
    rows = comparison(runs).below[1].rows
    assert rows == [("data.train", *(f"water.npz, SHA-256 {pair * 8}…" for pair in ("ab", "cd")))]


def test_folders_of_the_same_name_are_told_apart(tmp_path):
    runs = [run_in(tmp_path / place / "run") for place in ("a", "b")]
    names = [row[0] for row in comparison(runs).below[0].rows]
    assert names == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]


def test_one_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"needs two runs or more; got .*run"):
        comparison([run_in(tmp_path / "run"), run_in(tmp_path / "run")])


def test_the_command_writes_a_page_that_opens(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_npz(tmp_path / "springs.npz", **rmd17_arrays(60))
    runs = [str(tmp_path / "first"), str(tmp_path / "other")]
    for seed, directory in enumerate(runs):
        config = config_of(tmp_path, test=False)
        assert fit(replace(config, run=replace(config.run, directory=directory, seed=seed)))
    path = tmp_path / "both.html"
    assert main(["compare", *runs, "--output", str(path)]) == 0
    assert "<td>run.seed</td><td>0</td><td>1</td>" in path.read_text()
    with opened(path) as tab:
        tab.wait_for_function("window.page")
        tab.locator("#plot-0 .updatemenu-button", has_text="minutes").click()
        tab.wait_for_function("document.getElementById('plot-0').data[0].x[1] < 1")
    assert main(["compare", runs[0], str(tmp_path), "--output", str(path)]) == 1
    assert "is not the directory of a run" in caplog.text

import json
import math

import numpy as np
import pytest
import torch

from studies.__main__ import main
from studies.arms import HERE, read_study, study_files
from studies.cost import kept_bytes
from studies.effects import Setting, effect, error_mean, mean, settings
from studies.join import join
from studies.report import effects_table, gamma_table, pooled_table, write_report
from train.config import ConfigError

from ..support import rmd17_arrays, rmd17_rows, write_npz

STUDY = """
[axes.width.8.model.hypers]
hidden = 8

[axes.width.16.model.hypers]
hidden = 16

[[runs]]
molecule = ["ethanol"]
frames = [50]
width = [8, 16]
gamma = ["0", "1e-2"]
seed = [1, 2]
"""


def study(tmp_path, text=STUDY):
    path = tmp_path / "widths.toml"
    path.write_text(text)
    return path


def test_a_study_is_the_product_of_its_axes(tmp_path):
    arms = read_study(study(tmp_path))
    assert len(arms) == len({arm.digest for arm in arms}) == 8
    last = arms[-1]
    expected = {"molecule": "ethanol", "frames": "50", "width": "16", "gamma": "1e-2", "seed": "2"}
    assert last.labels == expected
    assert (last.config.loss.gamma, last.config.run.seed) == (0.01, 2)
    assert last.config.model.hypers["hidden"] == 16
    assert last.config.data.train == "rmd17/rmd17_ethanol_train_01.npz"


def test_results_are_known_by_what_is_trained_not_how(tmp_path):
    (first, *_), (again, *_) = (
        read_study(study(tmp_path, text))
        for text in (STUDY, "[base.run]\neval_batch_size = 3\ncompile = true\n" + STUDY)
    )
    assert first.digest == again.digest
    (other, *_) = read_study(study(tmp_path, "[base.optimiser]\nepochs = 3\n" + STUDY))
    assert other.config.optimiser.epochs == 200, "the axis comes after the base"
    (other, *_) = read_study(study(tmp_path, "[base.optimiser]\nbatch_size = 3\n" + STUDY))
    assert first.digest != other.digest


def test_without_mixing_it_is_all_one_how_layers_would_be_mixed(tmp_path):
    (plain, _, mixed, *_), (other, _, others, *_) = (
        read_study(study(tmp_path, text))
        for text in (STUDY, '[base.loss]\nlkm_distance = "mae"\n' + STUDY)
    )
    assert plain.digest == other.digest
    assert mixed.digest != others.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no \[\[runs\]\]"),
        ("[wrong]\n" + STUDY, "unknown keys wrong"),
        (STUDY.replace("[8, 16]", "[8, 32]"), r"no \[axes.width.32\]"),
        (STUDY.replace("hidden = 8", "[").replace("16", "="), "cannot be read"),
        (STUDY.replace("seed = [1, 2]", ""), "need the axes gamma and seed"),
        ("[base.loss]\ngama = 1\n" + STUDY, "Did you mean loss.gamma"),
    ],
)
def test_refuses_what_is_no_study(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_study(study(tmp_path, text))


def test_every_study_has_an_arm_without_mixing_for_each_setting():
    for path in study_files():
        arms = read_study(path)
        plain = {arm.labels["seed"] for arm in arms if arm.labels["gamma"] == "0"}
        assert len(plain) >= 3, f"{path.name}: at least three seeds"
        assert plain == {arm.labels["seed"] for arm in arms}


def test_the_page_is_that_of_the_committed_results(tmp_path):
    """Also if a default of an option changes, which must not rename the results."""
    write_report(HERE / "results", tmp_path)
    committed = HERE.parent / "docs" / "study.md"
    assert (tmp_path / "study.md").read_text() == committed.read_text(), "python -m studies report"


def test_effects_are_paired_by_seed():
    def result(error):
        return {"test": {"force_mae": error}, "validation": {"force_mae": 0.0}}

    plain = {"1": result(10.0), "2": result(20.0), "3": result(7.0)}
    mixed = {"1": result(9.0), "2": result(19.0)}
    setting = Setting({}, {"0": plain, "1e-2": mixed})
    found = effect(setting, "1e-2", "force_mae")
    assert found.value == pytest.approx(-7.5)
    assert found.error == pytest.approx(2.5)
    assert found.text(1, "+") == "-7.5 ± 2.5"
    assert error_mean(setting, "0", "force_mae").n == 3
    assert effect(setting, "1e-2", "energy_mae") is None
    assert effect(setting, "1", "force_mae") is None


def test_tables_of_gammas_and_of_architectures():
    def setting(labels, plain, mixed):
        runs = {
            gamma: {"1": {"test": {"force_mae": error}, "validation": {}}}
            for gamma, error in (("0", plain), ("1e-2", mixed))
        }
        return Setting(labels, runs)

    found = [setting({"distance": "mse"}, 10.0, 9.0), setting({"distance": "mae"}, 10.0, 10.5)]
    assert gamma_table(found).splitlines()[2] == "| 1e-2 | -10.0 | +5.0 |"
    models = [("pamnet", 9.0), ("pamnet", 10.0), ("mxmnet", 10.5)]
    found = [setting({"model": m}, 10.0, error) for m, error in models]
    rows = pooled_table(found).splitlines()[2:]
    assert rows[0] == "| pamnet | 1e-2 | 2 | -5.0 ± 5.0 |  |"
    assert rows[1] == "| mxmnet | 1e-2 | 1 | +5.0 |  |"
    assert rows[2].startswith("| all | 1e-2 | 3 | -1.7 ±")
    assert effects_table([Setting({}, {"0": {}, "1e-2": {}})]) == "*Not run yet.*"


def test_one_seed_has_no_standard_error():
    one = mean([3.0])
    assert math.isnan(one.error)
    assert one.text(1) == "3.0"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_runs_and_reports_a_study(tmp_path, monkeypatch, workers):
    """A study runs from end to end; results that are there are not made again."""
    text = """
        [base.data]
        train = "ethanol_gfn2.h5"
        n_train = 4
        n_validation = 2
        [base.optimiser]
        epochs = 1
        [[runs]]
        model = ["dimenet++"]
        gamma = ["0", "1e-2"]
        seed = [1, 2]
    """
    monkeypatch.setattr("studies.__main__.HERE", tmp_path)
    (tmp_path / "gamma.toml").write_text(text)
    results = tmp_path / "results"
    arguments = ["run", "gamma", "--data", str(HERE.parent / "md_examples")]
    arguments += ["--work", str(tmp_path / "work"), "--results", str(results)]
    arguments += ["--workers", workers]
    assert main(arguments) == 0
    files = sorted((results / "arms").glob("*.json"))
    assert len(files) == 4
    before = [path.stat().st_mtime_ns for path in files]
    assert main(arguments) == 0
    assert before == [path.stat().st_mtime_ns for path in files]
    found = settings(read_study(tmp_path / "gamma.toml"), results / "arms")
    text = effects_table(found)
    assert "| forces, meV/Å (2 seeds) | change at γ = 1e-2, % |" in text
    kept = json.loads(files[0].read_text())
    assert kept["steps"] == 1
    assert str(tmp_path) not in files[0].read_text()


@pytest.mark.parametrize("option", ["--loss.gamma", "--run.directory"])
def test_options_that_would_change_a_result_are_refused(option, capsys):
    assert main(["run", "gamma", option, "1"]) == 2
    assert option[2:] in capsys.readouterr().err


def test_data_that_are_not_there_are_named(tmp_path, capsys):
    arguments = ["run", "gamma", "--data", str(tmp_path), "--work", str(tmp_path)]
    assert main([*arguments, "--results", str(tmp_path)]) == 2
    assert "rmd17_ethanol_train_01.npz" in capsys.readouterr().err


def test_files_of_one_molecule_are_joined(tmp_path):
    arrays = rmd17_arrays(7)
    parts = [
        write_npz(tmp_path / f"{k}.npz", **rmd17_rows(arrays, rows))
        for k, rows in enumerate([slice(0, 3), slice(3, 7)])
    ]
    assert join(parts, tmp_path / "joined.npz") == 7
    joined = np.load(tmp_path / "joined.npz")
    assert set(joined) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(joined[name], array)
    arrays["nuclear_charges"] = arrays["nuclear_charges"] + 1
    with pytest.raises(ValueError, match=r"other\.npz has other atoms"):
        join([parts[0], write_npz(tmp_path / "other.npz", **arrays)], tmp_path / "none.npz")
    assert not (tmp_path / "none.npz").exists()


def test_kept_bytes_counts_each_tensor_once():
    x = torch.ones(10, requires_grad=True)

    def step():
        y = x.sin()  # keeps x
        (y * y).sum().backward()  # keeps y, twice

    assert kept_bytes(step) == 2 * 40

import dataclasses
import json

import numpy as np
import pytest

from studies import layers
from studies.environments import HOPS
from studies.layers_report import _change, report
from train.fit import record

PLAN = layers.QUICK


@pytest.fixture(scope="module", autouse=True)
def no_pictures_of_runs():
    """The pictures of a run take longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_learning_curves", "plot_parity", "write_run_page"):
            patch.setattr(record, name, lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return layers.write_stand_in(tmp_path_factory.mktemp("qm9") / "molecules.npz")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert layers.run(data, folder / "work", folder / "results", PLAN)
    return folder


def contents(folder):
    return {path.name: json.loads(path.read_text()) for path in (folder / "results").glob("*.json")}


def test_every_arm_is_measured_at_every_share(finished):
    found = contents(finished)
    assert sorted(found) == ["gamma=0_seed=1.json", "gamma=1_seed=1.json"]
    for arm in found.values():
        assert [row["step"] for row in arm["checkpoints"]] == [0, 1, 2]
        for row in arm["checkpoints"]:
            assert len(row["rank"]) == len(row["carbon_rank"]) == 6  # layers
            assert np.shape(row["cka"]) == np.shape(row["carbon_cka"]) == (6, 6)
            assert row["probes"].keys() == HOPS.keys()
        assert np.shape(arm["projection"]["together"]) == (6, layers.DRAWN, 2)


def test_arms_start_alike_and_mixing_brings_layers_together(finished):
    plain, mixed = (contents(finished)[f"gamma={g}_seed=1.json"]["checkpoints"] for g in (0, 1))
    assert plain[0] == mixed[0]
    assert mixed[-1]["lkm"] < plain[-1]["lkm"]


def test_the_surroundings_can_be_read_out(finished):
    probes = contents(finished)["gamma=0_seed=1.json"]["checkpoints"][0]["probes"]
    assert max(probes["neighbours"]) > 0.9  # five molecules are easily told apart
    assert max(probes["ring"]) > 0.9


def test_probe_molecules_are_kept_apart(data, tmp_path):
    others = layers.draw(data, tmp_path, PLAN)
    model = layers.prepare_model(layers.arm_of(PLAN, 0.0, 1).config, others)
    probes = layers.probes_of(others, model)
    frame = others.atom_frame[others.numbers == 6]
    assert not np.intersect1d(frame[probes.fitted], frame[~probes.fitted]).size
    seen = layers.read_frames(tmp_path / layers.learnt_name(PLAN)).positions
    assert not np.isin(others.positions.round(9), seen.round(9)).all(1).any()


def test_results_that_are_there_are_kept_and_other_plans_run_again(data, finished, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("an arm was run again")

    monkeypatch.setattr(layers, "train_and_measure", refuse)
    assert layers.run(data, finished / "work", finished / "results", PLAN)
    with pytest.raises(AssertionError, match="run again"):
        longer = dataclasses.replace(PLAN, epochs=3)
        layers.run(data, finished / "work", finished / "results", longer)


def test_an_interrupted_study_ends_with_the_same_results(data, finished, tmp_path, monkeypatch):
    plan = dataclasses.replace(PLAN, gammas=(1.0,))
    calls = iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return measured(*arguments)

    measured = layers.measure
    monkeypatch.setattr(layers, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        layers.run(data, tmp_path / "work", tmp_path / "results", plan)
    assert layers.run(data, tmp_path / "work", tmp_path / "results", plan)
    name = "gamma=1_seed=1.json"
    assert contents(tmp_path)[name] == contents(finished)[name]


def test_a_new_option_of_training_makes_no_result_old(finished):
    for arm in contents(finished).values():
        assert "loss.lkm_distance" not in arm["configuration"]["changes"]  # the default


def test_results_name_no_path(finished):
    for path in (finished / "results").glob("*.json"):
        assert str(finished) not in path.read_text()


def test_the_report_pairs_arms_by_seed(finished, tmp_path):
    """Two seeds far apart, each improved by 10 and 30 meV: the difference is −20 ± 10."""
    for gamma, errors in ((0, (500, 900)), (1, (490, 870))):
        arm = contents(finished)[f"gamma={gamma}_seed=1.json"]
        for seed, mae in enumerate(errors):
            arm["checkpoints"][-1]["mae"] = mae
            (tmp_path / f"{gamma}-{seed}.json").write_text(json.dumps(arm | {"seed": seed}))
    text = report(tmp_path, tmp_path)
    assert "| MAE, meV | 700 ± 200 | -20 ± 10 |" in text
    assert (tmp_path / "study-layers.png").stat().st_size > 10_000


def test_significant_changes_are_bold():
    assert _change([1.0, 1.2, 1.1], 1) == "**+1.1 ± 0.1**"
    assert _change([-1.0, -1.2, -1.1], 1) == "**-1.1 ± 0.1**"
    assert _change([0.1, 1.0, 2.2], 1) == "+1.1 ± 0.6"  # 4.3 errors are needed
    assert _change([1.0], 1) == "+1.0"

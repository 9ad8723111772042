"""Training end to end on a small file: convergence, resuming, stopping, failing."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from lkm_calc import MODELS, LKMCalculator, load_model
from lkm_calc.units import KCAL_PER_MOL
from train.config import ConfigError, OptimiserConfig, config_from_table, read_config
from train.data.frames import DataError
from train.fit.loop import TrainingDivergedError, fit
from train.fit.step import Stepper
from train.state.state import StateError, learning_rate

from ...support import SMALL, rattled, rmd17_arrays, write_npz

EPOCHS, BATCH = 4, 7


@pytest.fixture
def data(tmp_path):
    return write_npz(tmp_path / "springs.npz", **rmd17_arrays(60))


def config(data, directory, **changes):
    table = {
        "data": {"train": str(data), "n_train": 40, "n_validation": 15},
        "model": {"name": "dimenet++", "hypers": SMALL["dimenet++"]},
        "optimiser": {"epochs": EPOCHS, "batch_size": BATCH, "warmup_steps": 5, "ema_decay": 0.9},
        "run": {"directory": str(directory), "device": "cpu", "seed": 5},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        table[section] = table[section] | {name: value} if section in table else {name: value}
    return config_from_table(table)


def weights(directory):
    return torch.load(directory / "state.pt", weights_only=True)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        elif isinstance(value, dict):
            assert_same(value, other[key])
        elif key == "optimisers":
            for mine, theirs in zip(value, other[key], strict=True):
                assert_same(mine, theirs)
        elif key != "seconds":
            assert value == other[key], key


@pytest.mark.parametrize(
    ("name", "stops"),
    [("dimenet++", [6]), ("dimenet++", [1, 2, 13, 23]), *((name, [11]) for name in MODELS)],
)
def test_resuming_gives_the_same_weights_bit_for_bit(data, tmp_path, name, stops):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model = {"model__name": name, "model__hypers": SMALL[name]}
    assert fit(config(data, whole, **model)) == whole / "model.safetensors"
    for stop in stops:
        assert fit(config(data, parts, **model), stop_after=stop) is None
        assert weights(parts)["counters"]["step"] == stop
        assert not (parts / "result.json").exists()
    fit(config(data, parts, **model))
    assert_same(weights(whole), weights(parts))
    models = [load_model(folder / "model.safetensors").state_dict() for folder in (whole, parts)]
    assert_same(*models)
    logs = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, parts)
    ]
    assert len(logs[0]) == EPOCHS
    for one, other in zip(*logs, strict=True):
        assert_same(one, other)


def test_a_signal_stops_resumably(data, tmp_path, monkeypatch):
    step, calls = Stepper.step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        step(*arguments)

    monkeypatch.setattr(Stepper, "step", interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    assert fit(config(data, tmp_path / "run")) is None
    assert weights(tmp_path / "run")["counters"]["step"] == 9
    assert signal.getsignal(signal.SIGTERM) is handler
    assert fit(config(data, tmp_path / "run")) is not None


@pytest.mark.parametrize("option", ["cuda_graphs", "tf32"])
def test_what_only_a_gpu_can_do_is_refused_on_a_cpu(data, tmp_path, option):
    with pytest.raises(ConfigError, match="need a CUDA device; this is cpu"):
        fit(config(data, tmp_path / "run", **{f"run__{option}": True}))


def test_learns(data, tmp_path):
    path = fit(config(data, tmp_path / "run", optimiser__epochs=40, optimiser__learning_rate=5e-3))
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    forces = np.concatenate(rmd17_arrays()["forces"])
    assert rows[-1]["validation_force_mae"] < 0.4 * rows[0]["validation_force_mae"]
    assert rows[-1]["validation_force_mae"] < 0.3 * 43.4 * np.abs(forces).mean()
    model = load_model(path)
    assert model.provenance["validation_errors"]["force_mae"] == min(
        r["validation_force_mae"] for r in rows if r["step"] == model.provenance["step"]
    )
    assert model.elements == ("H", "C", "O")
    energy = LKMCalculator(path).evaluate([rattled(amplitude=0.05)])[0]["energy"]
    assert energy == pytest.approx(-4000, abs=3)


def test_what_a_run_leaves(data, tmp_path):
    test = write_npz(tmp_path / "test.npz", **rmd17_arrays(12, seed=9))
    directory = tmp_path / "run"
    fit(config(data, directory, data__test=str(test)))
    assert {p.name for p in directory.iterdir()} == {
        "config.json", "split.npz", "metrics.jsonl", "state.pt", "model.safetensors",
        "last.safetensors", "result.json", "card.md", "learning_curves.png", "parity.png",
        "report.html",
    }  # fmt: skip
    result = json.loads((directory / "result.json").read_text())
    assert result["test_errors"]["force_mae"] > 0
    assert result["files"]["train"]["name"] == "springs.npz"
    assert len(result["files"]["train"]["sha256"]) == 64
    assert str(tmp_path) not in (directory / "result.json").read_text()
    assert load_model(directory / "model.safetensors").provenance == result
    with np.load(directory / "split.npz") as split:
        assert len(split["train"]) == 40
        assert not np.intersect1d(split["train"], split["validation"]).size


def test_a_finished_run_is_left_as_it_is(data, tmp_path):
    fit(config(data, tmp_path / "run"))
    before = weights(tmp_path / "run")
    assert fit(config(data, tmp_path / "run")) is not None
    assert_same(before, weights(tmp_path / "run"))


def test_another_configuration_does_not_continue_the_run(data, tmp_path):
    fit(config(data, tmp_path / "run"), stop_after=3)
    with pytest.raises(StateError, match=r"loss.gamma was 0.0, is 0.5.*run.directory"):
        fit(config(data, tmp_path / "run", loss__gamma=0.5))


def test_a_run_continues_with_its_own_data_wherever_they_lie(data, tmp_path):
    fit(config(data, tmp_path / "run"), stop_after=3)
    moved = data.rename(tmp_path / "moved.npz")
    assert fit(config(moved, tmp_path / "run"), stop_after=5) is None
    other = write_npz(tmp_path / "other.npz", **rmd17_arrays(60, seed=1))
    with pytest.raises(StateError, match="data.train was 'SHA-256"):
        fit(config(other, tmp_path / "run"))


def test_a_damaged_state_is_named(data, tmp_path):
    fit(config(data, tmp_path / "run"), stop_after=3)
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(StateError, match="not a readable training state"):
        fit(config(data, tmp_path / "run"))


def test_a_state_is_compared_with_its_checksum(data, tmp_path):
    """One bit of a weight; torch reads such a file without a word."""
    fit(config(data, tmp_path / "run"), stop_after=3)
    path = tmp_path / "run" / "state.pt"
    weight = weights(tmp_path / "run")["model"]["embedding.radial.bias"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight) + 2] ^= 1
    path.write_bytes(content)
    assert weights(tmp_path / "run").keys()
    with pytest.raises(StateError, match="does not match its checksum: it was damaged"):
        fit(config(data, tmp_path / "run"))


def test_a_damaged_older_state_is_refused_too(data, tmp_path):
    """By the checksums of its archive, which torch writes and does not compare."""
    fit(config(data, tmp_path / "run"), stop_after=3)
    path = tmp_path / "run" / "state.pt"
    older = weights(tmp_path / "run")
    del older["format_version"]
    torch.save(older, path)
    content = bytearray(path.read_bytes())
    bias = older["model"]["embedding.radial.bias"].numpy().tobytes()
    content[content.index(bias) + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"its entry .* is damaged"):
        fit(config(data, tmp_path / "run"))


@pytest.mark.parametrize("cut", [1, 74])
def test_a_state_without_its_checksum_is_refused(cut, data, tmp_path):
    fit(config(data, tmp_path / "run"), stop_after=3)
    path = tmp_path / "run" / "state.pt"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(StateError, match="does not match its checksum"):
        fit(config(data, tmp_path / "run"))


def test_older_states_are_continued_with_a_note(data, tmp_path, caplog):
    fit(config(data, tmp_path / "whole"), stop_after=9)
    fit(config(data, tmp_path / "parts"), stop_after=3)
    older = weights(tmp_path / "parts")
    del older["format_version"]
    torch.save(older, tmp_path / "parts" / "state.pt")
    with caplog.at_level("WARNING", "lkm_train"):
        fit(config(data, tmp_path / "parts"), stop_after=9)
    assert "written by an older version, without a checksum" in caplog.text
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_a_diverging_run_says_so_and_keeps_its_last_state(data, tmp_path):
    changes = {"loss__gamma": 0.01, "optimiser__kind": "adamw", "optimiser__learning_rate": 1e30}
    changes |= {"optimiser__warmup_steps": 12}
    with pytest.raises(
        TrainingDivergedError, match=r"The loss or .*Reduce optimiser.learning_rate"
    ):
        fit(config(data, tmp_path / "run", **changes))


def test_a_diverging_validation_says_so_and_writes_no_model(data, tmp_path):
    changes = {"loss__gamma": 0.01, "optimiser__kind": "adamw", "optimiser__learning_rate": 1e30}
    changes |= {"optimiser__warmup_steps": 0}
    changes |= {"optimiser__batch_size": 40, "optimiser__epochs": 1}
    with pytest.raises(TrainingDivergedError, match="validation error became nan"):
        fit(config(data, tmp_path / "run", **changes))
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "config.json", "split.npz", "metrics.jsonl",
    }  # fmt: skip
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_the_data_may_move_while_training(data, tmp_path, monkeypatch):
    import train.fit.loop as loop

    validate = loop._Run._validate

    def moving(*arguments):
        if data.exists():
            data.rename(tmp_path / "elsewhere.npz")
        validate(*arguments)

    monkeypatch.setattr(loop._Run, "_validate", moving)
    assert fit(config(data, tmp_path / "run")) is not None


def test_a_test_set_added_later_is_named_in_the_provenance(data, tmp_path):
    fit(config(data, tmp_path / "run"))
    test = write_npz(tmp_path / "test.npz", **rmd17_arrays(12, seed=9))
    model = load_model(fit(config(data, tmp_path / "run", data__test=str(test))))
    assert model.provenance["files"]["test"]["name"] == "test.npz"


def test_config_json_reproduces_the_run(data, tmp_path):
    fit(config(data, tmp_path / "run"))
    again = read_config(tmp_path / "run" / "config.json", ["--run.directory", str(tmp_path / "b")])
    fit(again)
    assert_same(weights(tmp_path / "run")["model"], weights(tmp_path / "b")["model"])


def test_test_frames_with_other_elements_are_refused_before_training(data, tmp_path):
    arrays = rmd17_arrays(12)
    arrays["nuclear_charges"] = np.where(
        arrays["nuclear_charges"] == 8, 16, arrays["nuclear_charges"]
    )
    test = write_npz(tmp_path / "test.npz", **arrays)
    with pytest.raises(DataError, match="does not support S"):
        fit(config(data, tmp_path / "run", data__test=str(test)))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_energies_are_centred_in_float64(tmp_path):
    # The same labels 10⁷ eV lower, where float32 has steps of 1 eV, train to the same weights.
    runs = []
    for offset in (0.0, -(2.0**23)):
        arrays = rmd17_arrays(60)
        arrays["energies"] = arrays["energies"] + offset
        data = write_npz(tmp_path / f"d{offset}.npz", **arrays)
        run = tmp_path / f"run{offset}"
        fit(config(data, run, data__check_units=False))
        runs.append(weights(run)["model"])
    w = "interactions.0.from_kj.weight"
    assert torch.allclose(runs[0][w], runs[1][w], atol=1e-4)


@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_other_losses_and_gamma_zero_train(data, tmp_path, kind):
    fit(config(data, tmp_path / "run", loss__kind=kind, optimiser__epochs=1, run__dtype="float64"))
    assert load_model(tmp_path / "run" / "model.safetensors").dtype == torch.float64


def test_learning_rate_warms_up_and_follows_a_cosine():
    o = OptimiserConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    rates = [learning_rate(step, 110, o) for step in range(110)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_trains_on_cuda(data, tmp_path):
    assert fit(config(data, tmp_path / "run", run__device="cuda")) is not None


def test_what_cannot_change_the_weights_may_change_on_resuming(data, tmp_path):
    run = tmp_path / "run"
    assert fit(config(data, run), stop_after=3) is None
    changed = config(data, run, run__eval_batch_size=3, run__checkpoint_every=2)
    assert fit(changed) is not None


def test_a_run_of_an_earlier_version_goes_on(data, tmp_path):
    run = tmp_path / "run"
    assert fit(config(data, run), stop_after=3) is None
    saved = weights(run)
    del saved["format_version"]  # and there was no checksum
    del saved["identity"]["optimiser"]["swa_rate"], saved["identity"]["loss"]["stress"]
    torch.save(saved, run / "state.pt")
    with pytest.raises(StateError, match=r"optimiser.swa_rate was 0.05, is 0.5"):
        fit(config(data, run, optimiser__swa_rate=0.5))
    assert fit(config(data, run)) is not None


PLATEAUS = {
    "optimiser__schedule": "plateau",
    "optimiser__plateau_patience": 1,
    "optimiser__swa_fraction": 0.3,
    "optimiser__accumulate": 2,
    "loss__gamma_warmup_steps": 10,
    "loss__kind": "huber",
}
LEARNED = {"loss__gamma": "auto", "loss__lkm_teacher": "learned", "optimiser__kind": "muon"}


@pytest.mark.parametrize("options", [PLATEAUS, LEARNED], ids=["plateaus", "learned"])
def test_what_a_run_keeps_beside_the_weights_resumes_bit_for_bit(data, tmp_path, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(config(data, whole, **options))
    for stop in (5, 12, 18):
        assert fit(config(data, parts, **options), stop_after=stop) is None
    fit(config(data, parts, **options))
    assert_same(weights(whole), weights(parts))


def test_gamma_auto_is_a_fraction_of_the_loss(data, tmp_path, monkeypatch):
    """γ of a step times the mean L_KD of those before is the fraction of their mean task loss."""
    seen, averages = [], np.zeros(2)
    step = Stepper.step

    def spied(self, *arguments):
        before = self.state.loss_sums.numpy().copy()
        step(self, *arguments)
        seen.append((self.gamma.item(), *averages))
        total, *parts = self.state.loss_sums.numpy() - before
        loss, mixing = self.config.loss, parts[-1]
        task = loss.energy * parts[0] + loss.forces * parts[1]
        assert total == pytest.approx(task + self.gamma.item() * mixing)
        averages[:] += 0.01 * (np.array([task, mixing]) - averages)

    monkeypatch.setattr(Stepper, "step", spied)
    fit(config(data, tmp_path, loss__gamma="auto", loss__gamma_fraction=0.2), stop_after=4)
    assert seen[0] == (0.0, 0.0, 0.0), "nothing to go by"
    for gamma, task, mixing in seen[1:]:
        assert gamma * mixing == pytest.approx(0.2 * task)
        assert task > 0


def test_raw_energies_are_fitted_from_zero_in_float32(data, tmp_path):
    assert fit(config(data, tmp_path, loss__raw_energies=True)) is not None
    model = load_model(tmp_path / "model.safetensors")
    assert not model.reference_energies.any()
    assert model.scale.item() == pytest.approx(KCAL_PER_MOL)
    assert model.elements == ("H", "C", "O")

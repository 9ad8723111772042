"""Frames without forces among frames with them, and weights of frames by their config_type."""

import json
import math
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from lkm_calc import energy_and_forces, load_model
from train.__main__ import main
from train.config import Config, ConfigError, LossConfig, OptimiserConfig, RunConfig
from train.config import config_from_table as table_config
from train.data.config_types import check_config_types, frame_weights
from train.data.frames import DataError, check_frames
from train.data.label_counts import count_labels, describe_labels
from train.data.loader import Batch, GraphFrames
from train.doctor.examine import diagnose
from train.doctor.report import report_text
from train.fit.loop import fit
from train.fit.parallel import Stop, Workers
from train.fit.record import Record
from train.fit.step import Stepper
from train.formats.files import read_ase
from train.formats.hdf5 import read_hdf5, write_hdf5
from train.gradients import compiled
from train.gradients.loss import training_loss
from train.report.calibration import calibrate
from train.report.evaluate import errors_of, predict
from train.state.state import TrainingState

from ...support import SMALL, crystal, graph_of, rattled, relative_error, small_model
from ...support import spring_labels as springs
from ..fit.test_no_waiting import META, no_waiting, on_meta, run_again
from ..gradients.test_loss import predicted
from .test_loader import frames_of

CPU = torch.device("cpu")
NAN = float("nan")


def without_forces(frames, *which):
    """The frames, of which these have no forces."""
    forces = frames.forces.copy()
    forces[np.isin(frames.atom_frame, which)] = np.nan
    return replace(frames, forces=forces)


def images(n=40, missing=4):
    """Ethanol labelled with springs, as structures of ASE; every `missing`-th without forces."""
    found = []
    for k in range(n):
        atoms = rattled(seed=k, amplitude=0.08)
        (energy,), (forces,) = springs(atoms.positions[None])
        labels = {"energy": energy} | ({"forces": forces} if k % missing else {})
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info["config_type"] = "scan" if k % 2 else "md"
        found.append(atoms)
    return found


@pytest.fixture
def file(tmp_path):
    ase.io.write(tmp_path / "partial.extxyz", images())
    return tmp_path / "partial.extxyz"


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_frames_without_forces_are_read(tmp_path, name):
    ase.io.write(tmp_path / name, [atoms for atoms in images(8)])
    frames = read_ase(tmp_path / name)
    assert frames.has_forces.tolist() == [False, True, True, True] * 2
    assert len(frames.labelled_forces) == 6 * 9
    assert count_labels(frames) == {"frames": 8, "energies": 8, "forces": 6, "stress": 0}
    assert describe_labels(count_labels(frames)) == "8, energies in all, forces in 6"
    alone = frames.select(np.array([0, 4]))
    assert not alone.has_forces.any()
    assert alone.labelled_forces is None


def test_forces_are_of_a_whole_frame():
    frames = frames_of([rattled("H2O"), rattled("H2O", 1)])
    check_frames(without_forces(frames, 0), "f", check_units=False, partial=True)
    with pytest.raises(DataError, match=r"forces contain NaN.*\[0\]"):
        check_frames(without_forces(frames, 0), "f", check_units=False)
    for value in (np.nan, np.inf):
        torn = frames.forces.copy()
        torn[1] = value
        with pytest.raises(DataError, match=r"forces contain NaN or infinity in 1 frame.*\[0\]"):
            check_frames(replace(frames, forces=torn), "f", check_units=False, partial=True)


def test_units_are_judged_by_the_frames_with_forces(file, tmp_path):
    in_kcal = images()
    for atoms in in_kcal:
        for name in atoms.calc.results:
            atoms.calc.results[name] = atoms.calc.results[name] * 23.06 / 100
    ase.io.write(tmp_path / "kcal.extxyz", in_kcal)
    assert len(read_ase(file)) == 40
    for atoms in in_kcal:
        atoms.calc.results["energy"] *= 100
    ase.io.write(tmp_path / "kcal.extxyz", in_kcal)
    with pytest.raises(DataError, match="energy of frame 0 is|mean a force constant"):
        read_ase(tmp_path / "kcal.extxyz")


def test_hdf5_keeps_what_is_missing_and_the_types(file, tmp_path):
    frames = read_ase(file)
    write_hdf5(frames, tmp_path / "a.h5")
    found = read_hdf5(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.forces, frames.forces)
    assert found.config_types.tolist() == ["md", "scan"] * 20
    assert found.select(np.array([3, 0])).config_types.tolist() == ["scan", "md"]


def test_the_loss_of_the_labelled_by_hand():
    model = small_model()
    graph = graph_of(rattled("H2O")[:1], model)
    graph = type(graph).collate([graph, graph])
    energies = torch.full((2,), -17000.0, dtype=torch.float64)
    forces = torch.tensor([[NAN] * 3, [0.0, 0, 0]], dtype=torch.float64)
    batch = Batch(graph, energies, forces, None, torch.tensor([1, 1]), 2)
    out = predicted()
    out.forces[0] = 100.0
    out.forces.requires_grad_()
    losses = training_loss(out, batch, LossConfig(kind="l2", energy=2.0, gamma=0.0))
    assert batch.totals() == (2, 2, 0, 1)
    assert losses.forces.item() == 9 / 3, "one atom of two"
    assert losses.energy.item() == pytest.approx((0.0625 + 0.5625) / 2)
    losses.total.backward()
    assert out.forces.grad.tolist() == [[0, 0, 0], [2 * 3 / 3, 0, 0]]
    weighted = batch._replace(weights=torch.tensor([5.0, 0.5], dtype=torch.float64))
    losses = training_loss(out, weighted, LossConfig(kind="l2", energy=2.0, gamma=0.0))
    assert losses.forces.item() == 0.5 * 9 / 3
    assert losses.energy.item() == pytest.approx((5 * 0.0625 + 0.5 * 0.5625) / 2)


def test_weights_multiply_the_stress_too():
    model, config = small_model(), LossConfig(kind="l1", stress=1.0, gamma=0.0)
    graph = type(graph_of(crystal(), model)).collate([graph_of(crystal(), model)] * 2)
    out = energy_and_forces(model, graph, stress=True)
    stress = out.stress + torch.tensor([0.5, 0.1], dtype=torch.float64).view(2, 1, 1)
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    batch = Batch(graph, out.energy, out.forces, stress, torch.tensor([4, 4]), 8, weights)
    assert training_loss(out, batch, config).stress.item() == pytest.approx((3 * 0.5 + 0.1) / 2)


def test_a_batch_without_any_forces_has_a_loss():
    frames = without_forces(frames_of([rattled("H2O"), rattled("H2O", 1), rattled("CH4")]), 0, 1)
    model = small_model()
    data = GraphFrames(frames, model, CPU)
    indices = torch.tensor([0, 1])
    totals = data.totals(indices)
    assert totals == (2, 6, 0, 0)
    batch = data.batch(indices)._replace(counts=data.counts(totals))
    out = energy_and_forces(model, batch.graph, create_graph=True)
    losses = training_loss(out, batch, LossConfig(gamma=0.0), totals)
    assert losses.forces.item() == 0
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["l1", "l2", "huber"])
def test_pieces_add_up_to_the_batch(kind):
    model = small_model()
    molecules = [rattled(seed=k) for k in range(3)] + [rattled("H2O"), rattled("C6H6")]
    weights = np.array([1.0, 0.1, 2.0, 5.0, 0.0])
    data = GraphFrames(without_forces(frames_of(molecules), 1, 3), model, CPU, weights)
    config = LossConfig(kind=kind, gamma=0.01)

    def gradients(pieces):
        totals = data.totals(torch.arange(5))
        for piece in pieces:
            batch = data.batch(torch.tensor(piece))._replace(counts=data.counts(totals))
            out = energy_and_forces(model, batch.graph, create_graph=True)
            training_loss(out, batch, config, totals).total.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        model.zero_grad()
        return gradients

    whole, parts = gradients([[0, 1, 2, 3, 4]]), gradients([[1, 3], [4], [0, 2]])
    assert whole.isfinite().all()
    assert (whole - parts).abs().max() < 1e-10 * whole.abs().max()


def test_where_all_have_all_labels_nothing_is_added_to_a_batch():
    frames = frames_of([rattled("H2O"), rattled("CH4")])
    for uniform in (frames, replace(frames, forces=None)):
        data = GraphFrames(uniform, small_model(), CPU, frame_weights(uniform, {"Default": 1.0}))
        assert data.counts(data.totals(torch.arange(2))) is None
        assert data.batch(torch.arange(2))[6:] == (None, None)
    assert GraphFrames(without_forces(frames, 0, 1), small_model(), CPU).forces is None


def steps(batches, way=None, weights=None):
    """Make steps with frames of one molecule, two without forces; return what they make."""
    frames = frames_of([rattled(seed=k) for k in range(6)])
    frames = without_forces(replace(frames, forces=frames.forces / 10), 1, 4)
    optimiser = OptimiserConfig(batch_size=4, accumulate=2)
    run = RunConfig(compile=way == "compile", cuda_graphs=way == "cuda_graphs", kernels="off")
    config = Config(loss=LossConfig(gamma=0.1), optimiser=optimiser, run=run)
    model = small_model(num_blocks=1, num_before_skip=0, num_after_skip=0, num_output_dense=0)
    data = GraphFrames(frames, model, CPU, weights)
    state = TrainingState.create(model, optimiser)
    stepper = Stepper(state, data, config, Workers(), total=10)
    if way == "cuda_graphs":
        stepper.gradients.capture = run_again
    for indices in batches:
        stepper.step(torch.tensor(indices), 1e-3, Stop([], Workers()))
    return stepper, torch.cat([p.detach().flatten() for p in model.parameters()]), state.loss_sums


BATCHES = [0, 1, 2, 3], [4, 1, 0, 2], [0, 2, 3, 5], [5, 1, 3, 4]
"""With one, two, none and two frames without forces."""


@pytest.mark.parametrize("weights", [None, np.array([1, 0.1, 5, 0, 1, 2.0])], ids=["1", "some"])
@pytest.mark.parametrize("way", ["compile", "cuda_graphs"])
def test_one_program_serves_any_number_of_labels(monkeypatch, way, weights):
    monkeypatch.setattr(compiled, "inductor_compile", lambda traced, inputs, options: traced)
    stepper, *found = steps(BATCHES, way, weights)
    made = stepper.gradients
    assert len(made.programs if way == "compile" else made.graphs) == 1
    assert way != "compile" or not made.failed
    _, *expected = steps(BATCHES, None, weights)
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all()
        assert relative_error(a, b) < 1e-8


def test_a_compiled_step_with_partial_labels_and_weights():
    weights = np.array([1, 0.1, 5, 0, 1, 2.0])
    stepper, *found = steps(BATCHES, "compile", weights)
    assert stepper.gradients.compiled == 1
    _, *expected = steps(BATCHES, None, weights)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-8


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_step_waits_for_nothing(cuda_graphs):
    structures = [crystal(), crystal(1)]
    cells, pbc = (np.stack([getattr(a, n) for a in structures]) for n in ("cell", "pbc"))
    stress = np.stack([np.zeros((3, 3)), np.full((3, 3), NAN)])
    frames = replace(frames_of(structures), cells=cells, pbc=pbc, stress=stress)
    frames = without_forces(frames, 0)
    model, loss = small_model("pamnet"), LossConfig(stress=1.0, gamma=0.1)
    data = GraphFrames(frames, model, CPU, np.array([0.5, 2.0]))
    config = Config(loss=loss, run=RunConfig(cuda_graphs=cuda_graphs))
    state = TrainingState.create(model.to(META), config.optimiser)
    stepper = Stepper(state, on_meta(data), config, Workers(), total=10)
    if cuda_graphs:
        stepper.gradients.capture = run_again
    with no_waiting():
        stepper.step(torch.tensor([1, 0, 0]), 1e-3, Stop([], Workers()))


def test_errors_are_of_the_labelled_alone():
    model = small_model()
    complete = frames_of([rattled(), rattled("H2O"), rattled("C6H6")])
    found = predict(model, GraphFrames(without_forces(complete, 1), model, CPU), 2)
    all_three = predict(model, GraphFrames(complete, model, CPU), 2)
    rows = torch.tensor([*range(9), *range(12, 24)])
    assert torch.equal(found.numbers, all_three.numbers[rows])
    assert torch.equal(found.forces.labels, all_three.forces.labels[rows])
    assert torch.equal(found.forces.predicted, all_three.forces.predicted[rows])
    errors, expected = errors_of(found), errors_of(all_three)
    assert errors.energy_mae == expected.energy_mae
    assert errors.force_mae == pytest.approx(
        1000 * all_three.forces.difference[rows].abs().mean().item()
    )
    nothing = predict(model, GraphFrames(without_forces(complete, 0, 1, 2), model, CPU), 2)
    assert nothing.forces is None
    assert len(nothing.numbers) == 24
    assert all(math.isfinite(value) for value in errors_of(nothing).figures().values())


def test_calibration_is_of_the_labelled_alone(file):
    model = small_model()
    model.calibrate(1.0, {1: -13.0, 6: -1000.0, 8: -2000.0}, [1, 6, 8])
    frames = read_ase(file)
    labelled = frames.select(np.flatnonzero(frames.has_forces))
    training = GraphFrames(frames, model, CPU)
    found, _ = calibrate(model, training, training, 16)
    expected, _ = calibrate(model, GraphFrames(labelled, model, CPU), training, 16)
    assert found.frames == 30
    assert list(numbers_of(found.as_data())) == pytest.approx(list(numbers_of(expected.as_data())))


def numbers_of(data):
    """Yield the numbers of nested dictionaries and lists, in their order."""
    if isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from numbers_of(value)
    elif not isinstance(data, str):
        yield data


def config_of(file, directory, **changes):
    table = {
        "data": {"train": str(file), "n_train": 28, "n_validation": 10},
        "model": {"name": "dimenet++", "hypers": SMALL["dimenet++"]},
        "optimiser": {"epochs": 2, "batch_size": 5, "warmup_steps": 5},
        "run": {"directory": str(directory), "device": "cpu", "seed": 3},
    }
    return table_config(table | {name: table.get(name, {}) | v for name, v in changes.items()})


def test_a_run_learns_from_what_there_is_and_says_so(file, tmp_path, caplog):
    caplog.set_level("INFO")
    weights = {"config_type_weights": {"scan": 5.0, "Default": 0.5}}
    path = fit(config_of(file, tmp_path / "run", loss=weights))
    provenance = load_model(path).provenance
    train, validation = (provenance["labels"][name] for name in ("train", "validation"))
    assert (train["frames"], validation["frames"]) == (28, 10)
    assert 0 < train["forces"] < 28
    text = f"train frames: 28, energies in all, forces in {train['forces']}"
    assert text in caplog.text
    card = (tmp_path / "run" / "card.md").read_text()
    assert text in card
    assert "weights by config_type: scan 5, Default 0.5" in card
    assert (
        json.loads((tmp_path / "run" / "result.json").read_text())["labels"]
        == (provenance["labels"])
    )
    for row in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()):
        assert all(math.isfinite(value) for value in row.values())
    assert main(["evaluate", str(path), str(file)]) == 0


def test_validation_frames_without_forces(tmp_path, caplog):
    frames = images(30, missing=1)
    config = config_of(tmp_path / "a.extxyz", tmp_path / "run", data={})
    split = np.random.default_rng(3).permutation(30)
    for k in split[:20]:
        energy, forces = springs(frames[k].positions[None])
        frames[k].calc = SinglePointCalculator(frames[k], energy=energy[0], forces=forces[0])
    ase.io.write(tmp_path / "a.extxyz", frames)
    data = {"train": str(tmp_path / "a.extxyz"), "n_train": 20, "n_validation": 10}
    config = replace(config, data=replace(config.data, **data))
    path = fit(config)
    assert "No validation frame has forces" in caplog.text
    errors = load_model(path).provenance["validation_errors"]
    assert set(errors) == {"energy_mae", "energy_rmse", "energy_per_atom_mae"}
    assert all(map(math.isfinite, errors.values()))


def test_a_run_with_partial_labels_resumes_bit_for_bit(file, tmp_path):
    weights = {"config_type_weights": {"scan": 5}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(config_of(file, whole, loss=weights))
    fit(config_of(file, parts, loss=weights), stop_after=7)
    fit(config_of(file, parts, loss=weights))
    one, other = (
        torch.load(folder / "state.pt", weights_only=True)["model"] for folder in (whole, parts)
    )
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_run_of_before_there_were_names_and_weights_goes_on(file, tmp_path, monkeypatch):
    def older(record):
        table = identity(record)
        for label in ("energy", "forces", "stress", "virial"):
            del table["data"][f"{label}_key"]
        del table["loss"]["config_type_weights"]
        return table

    identity = Record.identity.fget
    with monkeypatch.context() as before:
        before.setattr(Record, "identity", property(older))
        fit(config_of(file, tmp_path / "run"), stop_after=5)
    assert fit(config_of(file, tmp_path / "run")) is not None


def test_weights_by_config_type(file):
    frames = read_ase(file)
    assert frame_weights(frames, {}) is None
    assert frame_weights(frames, {"scan": 1.0}) is None
    assert frame_weights(frames, {"scan": 5.0})[:3].tolist() == [1, 5, 1]
    assert frame_weights(frames, {"scan": 5.0, "Default": 0.1})[:3].tolist() == [0.1, 5, 0.1]
    untyped = replace(frames, config_types=None)
    assert frame_weights(untyped, {"Default": 0.1}).tolist() == [0.1] * 40
    check_config_types(frames, {"scan": 5.0, "Default": 0.1}, "f")
    with pytest.raises(ConfigError, match=r"contains IsolatedAtom, .*md \(20\), scan \(20\)"):
        check_config_types(frames, {"IsolatedAtom": 0.1, "scan": 5.0}, "f")
    with pytest.raises(ConfigError, match="None of its frames has a config_type"):
        check_config_types(untyped, {"scan": 5.0}, "f")


def test_an_unknown_type_ends_the_run_before_it_begins(file, tmp_path, caplog):
    config = tmp_path / "c.toml"
    config.write_text(f'[data]\ntrain = "{file}"\n[loss.config_type_weights]\nscna = 2\n')
    assert main(["fit", str(config), "--run.directory", str(tmp_path / "run")]) == 1
    assert "contains scna" in caplog.text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weight", [-1.0, math.inf, "much", True])
def test_weights_are_numbers(weight):
    table = {"data": {"train": "x"}, "loss": {"config_type_weights": {"scan": weight}}}
    with pytest.raises(ConfigError, match="config_type_weights.scan is"):
        table_config(table)


def test_check_data_counts_and_examines_what_there_is(file):
    frames = read_ase(file)
    report = diagnose(frames)
    text = report_text(report, "f")
    assert "labels                  40, energies in all, forces in 30" in text
    assert "config_type             md 20, scan 20" in text
    assert "10 of 40 frames have no forces: frames 0, 4, 8, 12, 16 and 5 more" in text
    assert not report.faulty
    labelled = diagnose(frames.select(np.flatnonzero(frames.has_forces)))
    assert report.figures.rms_force == labelled.figures.rms_force
    assert len(report.figures.largest_force) == 30
    gradient = diagnose(replace(frames, forces=-frames.forces))
    assert {f.name for f in gradient.findings if f.severity == "fault"} == (
        {
            f.name
            for f in diagnose(
                replace(
                    frames.select(np.flatnonzero(frames.has_forces)), forces=-frames.labelled_forces
                )
            ).findings
            if f.severity == "fault"
        }
    )
    none = diagnose(without_forces(frames, *range(40)))
    assert "no forces" in {f.name for f in none.findings}
    assert not none.faulty

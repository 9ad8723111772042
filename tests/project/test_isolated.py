"""Isolated atoms: exact energies, a smooth way there, and their part in trainings."""

import json
from dataclasses import replace

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from safetensors.torch import load_file, save_file

from lkm_calc import MODELS, LKMCalculator, energy_and_forces, load_model, save_model
from lkm_calc.models import isolation
from lkm_calc.potential import ModelFileError, read_header, renew_checksum
from train.__main__ import main
from train.config import ConfigError, config_from_table
from train.data import DataError, Frames, GraphFrames, isolated_atoms
from train.doctor import diagnose, report_text
from train.fit import Record, fit
from train.formats import read_frames
from train.gradients import as_trained
from train.gradients.isolated import WithIsolatedAtoms
from train.report import own_split
from train.state import StateError

from ..support import (
    FINITE_DIFFERENCE,
    SMALL,
    graph_of,
    numerical_forces,
    rattled,
    relative_error,
    small_model,
    spring_labels,
)

LABELS = {1: -13.6, 6: -1030.25, 8: -2041.5}
BONDED = {1: -17.2, 6: -1034.0, 8: -2045.0}
BINDING = {z: BONDED[z] - LABELS[z] for z in LABELS}
EXACT = 1e-9


def with_atoms(name="dimenet++"):
    """Return a model that knows isolated atoms, and the same without."""
    model, plain = small_model(name), small_model(name)
    plain.calibrate(1.3, BONDED, BONDED)
    model.calibrate(1.3, LABELS, LABELS, BINDING)
    return model, plain


def labelled(numbers, positions, energy, forces, **more):
    atoms = ase.Atoms(numbers, positions, **more)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def molecules(n_frames, seed=0):
    """Return frames of ethanol held by springs, bound by 33 eV with respect to LABELS."""
    rng = np.random.default_rng(seed)
    rest = rattled(amplitude=0.0)
    positions = rest.positions + rng.normal(0, 0.1, (n_frames, len(rest), 3))
    energies, forces = spring_labels(positions)
    start = sum(LABELS[z] for z in rest.numbers) - 33
    return [
        labelled(rest.numbers, x, start + e, f)
        for x, e, f in zip(positions, energies - energies.mean(), forces, strict=True)
    ]


def lone(number, energy=None, force=0.0, **more):
    energy = LABELS[number] if energy is None else energy
    return labelled([number], np.zeros((1, 3)), energy, np.full((1, 3), force), **more)


def all_lone():
    return [lone(z) for z in LABELS]


def configuration(path, directory, **changes):
    table = {
        "data": {"train": str(path), "n_train": 40, "n_validation": 15},
        "model": {"name": "dimenet++", "hypers": SMALL["dimenet++"]},
        "optimiser": {"epochs": 3, "batch_size": 7, "warmup_steps": 5, "ema_decay": 0.9},
        "run": {"directory": str(directory), "device": "cpu", "seed": 5},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        table[section] = table[section] | {name: value} if section in table else {name: value}
    return config_from_table(table)


@pytest.fixture
def data(tmp_path):
    """Write 60 molecules with 3 isolated atoms among them."""
    frames, atoms = molecules(60), all_lone()
    path = tmp_path / "data.extxyz"
    write(path, [atoms[0], *frames[:20], atoms[1], *frames[20:], atoms[2]])
    return path


@pytest.fixture
def only_molecules(tmp_path):
    path = tmp_path / "molecules.extxyz"
    write(path, molecules(60))
    return path


@pytest.mark.parametrize("name", MODELS)
def test_isolated_atoms_have_their_labels_and_molecules_what_they_had(name, tmp_path):
    model, plain = with_atoms(name)
    save_model(model, tmp_path / "model.safetensors")
    for dtype in ("float64", "float32"):
        calculator = LKMCalculator(tmp_path / "model.safetensors", dtype=dtype)
        for number, label in LABELS.items():
            assert calculator.get_potential_energy(ase.Atoms([number])) == pytest.approx(
                label, abs=EXACT
            )
            assert not calculator.get_forces(ase.Atoms([number])).any()
    graph = graph_of(rattled(), model)
    found, expected = energy_and_forces(model, graph), energy_and_forces(plain, graph)
    torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=EXACT)
    assert torch.equal(found.forces, expected.forces)
    kept = LKMCalculator(model, dtype="float32")  # cast after it was measured
    assert kept.get_potential_energy(ase.Atoms("H")) == pytest.approx(LABELS[1], abs=EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_a_molecule_pulled_apart_has_the_energies_of_its_atoms_and_forces_are_derivatives(name):
    model, plain = with_atoms(name)
    graph = graph_of(rattled(), model)
    apart = ase.Atoms("CH4O", positions=2 * model.cutoff * np.arange(18).reshape(6, 3))
    expected = sum(LABELS[z] for z in apart.numbers)
    assert model(graph_of(apart, model)).energy.item() == pytest.approx(expected, abs=EXACT)
    assert plain(graph).energy.item() == pytest.approx(model(graph).energy.item(), abs=EXACT)

    water = ase.Atoms("OHH", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    rest = model(graph_of(water[[0, 2]], model)).energy.item()
    for moved in (2.0, 2.6, 3.3):  # between half the cut-off and the cut-off
        stretched = water.copy()
        stretched.positions[1, 0] += moved
        out = energy_and_forces(model, graph_of(stretched, model))
        assert relative_error(out.forces, numerical_forces(model, stretched)) < FINITE_DIFFERENCE
    stretched.positions[1, 0] = 1.001 * model.cutoff
    far = model(graph_of(stretched, model)).energy.item()
    stretched.positions[1, 0] = 0.999 * model.cutoff
    near = model(graph_of(stretched, model)).energy.item()
    assert far == pytest.approx(rest + LABELS[1], abs=EXACT)
    assert near == pytest.approx(far, abs=1e-5)


def test_the_weight_of_the_isolated_atom_is_twice_differentiable():
    def weight(r):
        return isolation(r.reshape(1), torch.zeros(1, dtype=torch.int64), 2, 5.0)[0]

    at = {r: weight(torch.tensor(r).double()).item() for r in (1.0, 2.5, 3.5, 5.0, 6.0)}
    assert at[1.0] == at[2.5] == 0
    assert at[3.5] == pytest.approx((1 - (2 * 0.3) ** 3) ** 3)
    assert at[5.0] == at[6.0] == 1
    assert isolation(torch.ones(1), torch.zeros(1, dtype=torch.int64), 2, 5.0)[1] == 1
    for r in (2.5, 5.0):
        x = torch.tensor(r, dtype=torch.float64)
        for order in range(3):
            below, above = (_derivative(weight, x + h, order) for h in (-1e-5, 1e-5))
            assert below == pytest.approx(above, abs=2e-3)


def _derivative(function, x, order):
    x = x.clone().requires_grad_()
    value = function(x)
    for _ in range(order):
        (value,) = torch.autograd.grad(value, x, create_graph=True)
    return value.item()


def test_a_model_file_keeps_isolated_atoms_and_refuses_senseless_ones(tmp_path):
    model, plain = with_atoms()
    path = tmp_path / "model.safetensors"
    save_model(plain, path)
    assert "binding_energies" not in read_header(path)
    save_model(model, path)
    header = read_header(path)
    assert header["reference_energies"]["H"] == LABELS[1]
    assert header["binding_energies"]["H"] == pytest.approx(BINDING[1])
    loaded = load_model(path)
    assert loaded.isolated_elements == (1, 6, 8)
    graph = graph_of(rattled(), model)
    assert torch.equal(loaded(graph).energy, model(graph).energy)
    for wrong in ([1], {"Xy": 1.0}, {"H": "a"}, {"N": 1.0}):
        broken = tmp_path / "broken.safetensors"
        changed = json.dumps(header | {"binding_energies": wrong})
        save_file(load_file(path), broken, metadata={"lkm_calc": changed})
        with pytest.raises(ModelFileError, match="binding_energies|reference_energies"):
            renew_checksum(broken)


def test_kernels_know_isolated_atoms():
    for name in MODELS:
        model = with_atoms(name)[0]
        fast, slow = LKMCalculator(model, compile=True), LKMCalculator(model)
        water = ase.Atoms("OHH", positions=[[0, 0, 0], [3.6, 0, 0], [-0.24, 0.93, 0]])
        for atoms in (ase.Atoms("O"), water):
            assert fast.get_potential_energy(atoms) == pytest.approx(
                slow.get_potential_energy(atoms), abs=1e-8
            )
            np.testing.assert_allclose(fast.get_forces(atoms), slow.get_forces(atoms), atol=1e-8)


def test_training_leaves_isolated_atoms_out_and_gives_them_their_labels(
    data, only_molecules, tmp_path, caplog
):
    caplog.set_level("INFO")
    path = fit(configuration(data, tmp_path / "run"))
    calculator = LKMCalculator(path)
    for number, label in LABELS.items():
        assert calculator.get_potential_energy(ase.Atoms([number])) == pytest.approx(
            label, abs=EXACT
        )
    assert read_header(path)["reference_energies"]["C"] == LABELS[6]
    assert "isolated atoms of C: -1030.250000 eV" in caplog.text
    split = np.load(tmp_path / "run" / "split.npz")
    chosen = np.concatenate([split["train"], split["validation"]])
    assert (len(split["train"]), len(split["validation"])) == (40, 15)
    assert not {0, 21, 62} & set(chosen.tolist())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["isolated_atoms"]["frames"] == 3
    assert result["isolated_atoms"]["energies"] == {"H": -13.6, "C": -1030.25, "O": -2041.5}
    assert "isolated atoms | H -13.6000 eV" in (tmp_path / "run" / "card.md").read_text()

    # The molecules are learnt as they would be without.
    other = fit(configuration(only_molecules, tmp_path / "plain"))
    errors = json.loads((tmp_path / "plain" / "result.json").read_text())["validation_errors"]
    for name, value in result["validation_errors"].items():
        assert value == pytest.approx(errors[name], rel=1e-3), name
    molecule = molecules(1, seed=9)[0]
    expected = LKMCalculator(other).get_potential_energy(molecule.copy())
    assert calculator.get_potential_energy(molecule.copy()) == pytest.approx(expected, abs=1e-3)

    frames = read_frames(data)
    again = own_split(load_model(path), frames, data)
    np.testing.assert_array_equal(again.train, split["train"])


def test_resuming_with_isolated_atoms_gives_the_same_weights_and_energies(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(configuration(data, whole))
    for stop in (4, 11):
        assert fit(configuration(data, parts), stop_after=stop) is None
    fit(configuration(data, parts))
    one, other = (load_model(folder / "last.safetensors") for folder in (whole, parts))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert torch.equal(one.isolated_shifts, other.isolated_shifts)


def test_a_run_that_took_isolated_atoms_for_frames_is_not_continued(data, tmp_path, monkeypatch):
    run = configuration(data, tmp_path / "run")
    now = Record.identity.fget

    def before(record):
        table = now(record)
        del table["data"]["isolated_atoms"]
        return table

    monkeypatch.setattr(Record, "identity", property(before))
    fit(run, stop_after=3)
    monkeypatch.undo()
    with pytest.raises(StateError, match="isolated_atoms was None"):
        fit(run)


def test_atoms_that_are_partly_isolated_are_trained_with_the_energies_of_isolated_ones(tmp_path):
    frames = [
        labelled([1, 1], [[0, 0, 0], [r, 0, 0]], -27.2 - 4.5 * np.exp(-((r - 0.75) ** 2)), f)
        for r in np.linspace(0.6, 6.0, 60)
        for f in [9 * (r - 0.75) * np.exp(-((r - 0.75) ** 2)) * np.array([[1, 0, 0], [-1, 0, 0]])]
    ]
    path = tmp_path / "curve.extxyz"
    write(path, [lone(1), *frames])
    changes = {"data__check_units": False, "optimiser__epochs": 40, "run__dtype": "float64"}
    run = configuration(path, tmp_path / "run", **changes)
    model = load_model(fit(run))
    assert model(graph_of(frames[-1], model)).energy.item() == pytest.approx(-27.2, abs=EXACT)
    data = GraphFrames(
        read_frames(path, check_units=False).select(np.arange(1, 61)), model, torch.device("cpu")
    )
    trained = as_trained(model, data)
    assert isinstance(trained, WithIsolatedAtoms)
    for index in ([0, 30], [59]):
        batch = data.batch(torch.tensor(index))
        found, expected = (
            energy_and_forces(trained, batch.graph),
            energy_and_forces(model, batch.graph),
        )
        torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-5)


def test_bonded_atoms_are_trained_by_the_model_itself(data):
    model = with_atoms()[0]
    frames = read_frames(data)
    bonded = GraphFrames(frames.select(np.arange(1, 21)), model, torch.device("cpu"))
    assert as_trained(model, bonded) is model


def test_gradients_know_how_isolated_atoms_change_with_the_weights():
    model = with_atoms()[0]
    trained = WithIsolatedAtoms(model)
    stretched = ase.Atoms("OH", positions=[[0, 0, 0], [3.4, 0, 0]])
    graph = graph_of(stretched, model)
    weight = model.outputs[0].value.weight
    (gradient,) = torch.autograd.grad(trained(graph).energy.sum(), weight)
    step = torch.zeros_like(weight)
    step[0, 0] = 1e-4
    energies = []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * step
            model.measure_isolated_atoms()
            energies.append(model(graph).energy.item())
            weight -= sign * step
    assert (energies[0] - energies[1]) / 2e-4 == pytest.approx(gradient[0, 0].item(), rel=1e-6)


def test_isolated_atoms_that_differ_are_refused_and_equal_ones_averaged(data, tmp_path):
    frames = molecules(60)
    path = tmp_path / "two.extxyz"
    write(path, [lone(1), lone(1, -13.6004), *frames])
    assert isolated_atoms(read_frames(path), "x").energies[1] == pytest.approx(-13.6002)
    write(path, [lone(1), *frames, lone(1, -13.1)])
    with pytest.raises(DataError, match=r"isolated atoms of H .*-13.600000, -13.100000.*\[0, 61\]"):
        fit(configuration(path, tmp_path / "run"))
    report = diagnose(read_frames(path))
    assert report.faulty
    assert "energies of H (frames 0, 61) differ by 0.5 eV" in report_text(report, "x")


def test_isolated_atoms_alone_are_refused(tmp_path):
    path = tmp_path / "atoms.extxyz"
    write(path, all_lone())
    with pytest.raises(DataError, match="isolated atoms only"):
        fit(configuration(path, tmp_path / "run"))
    report = diagnose(read_frames(path))
    assert not report.faulty  # it may be a file to test a model with
    assert "there are no other frames" in report_text(report, "x")


def test_the_frames_asked_for_are_molecules(data, tmp_path):
    with pytest.raises(
        DataError, match=r"60 frames of the file \(3 isolated atom\(s\) not counted"
    ):
        fit(configuration(data, tmp_path / "run", data__n_train=46))


def test_crystals_of_one_atom_are_no_isolated_atoms_but_atoms_in_a_large_box_are():
    cells = [bulk("Cu").cell.array, 12 * np.eye(3), 12 * np.eye(3), np.zeros((3, 3))]
    # The last vectors span a lattice that repeats every 2 Å.
    cells[2] = np.array([[12.0, 0, 0], [10, 2, 0], [0, 0, 12]])
    frames = Frames(
        numbers=np.full(4, 29),
        positions=np.zeros((4, 3)),
        energies=np.zeros(4),
        starts=np.arange(5),
        cells=np.array(cells),
        pbc=np.array([[True] * 3] * 3 + [[False] * 3]),
    )
    assert frames.isolated.tolist() == [False, True, False, True]
    wire = replace(frames, pbc=np.array([[True, False, False]] * 3 + [[False] * 3]))
    assert wire.isolated.tolist() == [False, True, True, True]


def test_forces_on_isolated_atoms_are_ignored(tmp_path):
    path = tmp_path / "data.extxyz"
    write(path, [lone(1, force=0.3), *molecules(60)])
    model = load_model(fit(configuration(path, tmp_path / "run")))
    assert model(graph_of(ase.Atoms("H"), model)).energy.item() == pytest.approx(-13.6, abs=EXACT)
    assert model.isolated_elements == (1,)


def test_elements_of_isolated_atoms_alone_are_not_learnt(tmp_path, caplog):
    path = tmp_path / "data.extxyz"
    write(path, [labelled([7], np.zeros((1, 3)), -1485.0, np.zeros((1, 3))), *molecules(60)])
    model = load_model(fit(configuration(path, tmp_path / "run")))
    assert "N occurs only as isolated atoms" in caplog.text
    assert model.elements == ("H", "C", "O")


def test_raw_energies_and_isolated_atoms_exclude_each_other(data, tmp_path):
    with pytest.raises(ConfigError, match="raw_energies"):
        fit(configuration(data, tmp_path / "run", loss__raw_energies=True))


def test_evaluate_and_fit_report_isolated_atoms_of_test_files_apart(data, tmp_path, capsys):
    test = tmp_path / "test.extxyz"
    write(test, [*molecules(10, seed=3), lone(6, -1030.0)])
    run = configuration(data, tmp_path / "run", data__test=str(test))
    path = fit(run)
    result = json.loads((path.parent / "result.json").read_text())
    assert result["test_isolated_atoms"]["C"]["error"] == pytest.approx(-250, abs=1e-3)
    assert main(["evaluate", str(path), str(test), "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out)
    atom = figures.pop("isolated_atoms")
    assert atom["C"]["predicted"] == pytest.approx(LABELS[6], abs=EXACT)
    assert figures == pytest.approx(result["test_errors"], rel=1e-4)
    write(test, [lone(1)])
    assert main(["evaluate", str(path), str(test), "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"isolated_atoms"}
    assert main(["calibrate", str(path), str(data), "--device", "cpu"]) == 0


def test_check_data_tells_of_isolated_atoms_and_of_those_by_another_method(data, tmp_path):
    report = diagnose(read_frames(data))
    text = report_text(report, "x")
    assert "3 frame(s): H -13.6000, C -1030.2500, O -2041.5000 eV; binding energy of other" in text
    assert not report.faulty
    path = tmp_path / "wrong.extxyz"
    write(path, [*molecules(60), *(lone(z, e / 2) for z, e in LABELS.items())])
    text = report_text(diagnose(read_frames(path)), "x")
    assert "the binding energy of other frames relative to them is 23" in text


def test_finetuning_keeps_isolated_atoms_of_the_same_method_and_takes_new_ones(
    data, only_molecules, tmp_path
):
    path = fit(configuration(data, tmp_path / "run"))
    run = configuration(only_molecules, tmp_path / "more", run__finetune=str(path))
    model = load_model(fit(run))
    assert model(graph_of(ase.Atoms("C"), model)).energy.item() == pytest.approx(
        -1030.25, abs=EXACT
    )

    other = tmp_path / "other.extxyz"
    frames = molecules(60)
    for atoms in frames:  # another method
        energy, forces = atoms.get_potential_energy() + 30, atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    write(other, [lone(1, -13.5), *frames])
    run = configuration(other, tmp_path / "other", run__finetune=str(path))
    model = load_model(fit(run))
    assert model.isolated_elements == (1,)
    assert model(graph_of(ase.Atoms("H"), model)).energy.item() == pytest.approx(-13.5, abs=EXACT)

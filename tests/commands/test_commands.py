"""lkm-calc as a user types it."""

import csv
import json
import logging
import signal

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from lkm_calc import LKMCalculator, save_model
from lkm_calc.__main__ import main
from lkm_calc.md.record import MDRecord

from ..support import crystal, rattled, small_model

COMMANDS = ("md", "relax", "evaluate", "vib", "info", "models", "compile")


@pytest.fixture(autouse=True)
def messages(caplog, tmp_path, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    return caplog


@pytest.fixture
def ethanol(tmp_path):
    rattled(amplitude=0.02).write(tmp_path / "ethanol.xyz")
    return "ethanol.xyz"


@pytest.fixture
def model_of_crystals(tmp_path):
    model = small_model()
    model.scale.mul_(0.01)
    save_model(model, tmp_path / "crystals.safetensors")
    return "crystals.safetensors"


def rows(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_manual_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert f"\n  lkm-calc {command}" in text
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"\n  lkm-calc {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["md", "m"], ["md", "m", "s", "--ensemble", "npt"], ["info", "m", "--wings"]],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2
    assert "usage: lkm-calc" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["md", "relax", "evaluate", "vib", "compile"])
def test_what_cannot_be_read_is_said(command, ethanol, tmp_path, messages):
    def refused(*arguments):
        messages.clear()
        assert main([command, *arguments]) == 1
        (record,) = messages.records
        assert record.message.startswith("lkm-calc: ")
        assert "\n" not in record.message
        return record.message

    assert "of that name; bundled models: chignolin-gfn2" in refused("none", ethanol)
    assert "none.xyz does not exist. Pass" in refused("rmd17-ethanol", "none.xyz")
    (tmp_path / "noise.xyz").write_text("this is\nno structure\n")
    assert "such as .xyz, .traj" in refused("rmd17-ethanol", "noise.xyz")
    (tmp_path / "empty.xyz").write_text("0\n\n")
    assert "empty.xyz" in refused("rmd17-ethanol", "empty.xyz")
    (tmp_path / "noise.safetensors").write_text("noise")
    assert "not a readable model file" in refused("noise.safetensors", ethanol)
    molecule("CH3CH2SH").write(tmp_path / "thiol.xyz")
    text = refused("rmd17-ethanol", "thiol.xyz")
    assert "does not support S" in text
    assert "Use a model whose training set contains" in text
    assert not (tmp_path / "runs").exists()


def test_md(ethanol, tmp_path, messages):
    command = ["md", "rmd17-ethanol", ethanol, "--dtype", "float64", "--log-every", "5"]
    assert main([*command, "--steps", "20"]) == 0
    folder = tmp_path / "runs" / "md-ethanol"
    assert [int(row["step"]) for row in rows(folder)] == [0, 5, 10, 15, 20]
    assert (folder / "md.png").stat().st_size > 10_000
    assert len(ase.io.read(folder / "trajectory.traj", ":")) == 2
    assert "20 steps (0.01 ps)" in messages.text
    assert main([*command, "--steps", "30"]) == 0, "longer"
    assert "Resuming from step 20" in messages.text
    assert len(rows(folder)) == 7
    assert main([*command, "--steps", "30"]) == 0
    assert "use a larger --ps to extend" in messages.text
    assert main([*command, "--steps", "30", "--temperature", "310"]) == 1
    assert "contains a different run: temperature was 300.0, is 310.0" in messages.text
    assert len(rows(folder)) == 7


def test_md_that_is_interrupted(ethanol, tmp_path, messages, monkeypatch):
    add_row = MDRecord.add_row

    def interrupt(record, row):
        add_row(record, row)
        if row.step:  # that of step 0 is written before signals are caught
            signal.raise_signal(signal.SIGINT)

    command = ["md", "rmd17-ethanol", ethanol, "--steps", "20", "--log-every", "8"]
    with monkeypatch.context() as patch:
        patch.setattr(MDRecord, "add_row", interrupt)
        assert main(command) == 3
    assert "Stopped at step 8 of 20; run the same command to resume." in messages.text
    assert main(command) == 0
    assert [row["step"] for row in rows(tmp_path / "runs" / "md-ethanol")] == ["0", "8", "16"]


def test_md_from_a_relaxed_structure_of_another_frame(ethanol, tmp_path, messages):
    frames = [molecule("H2O"), rattled(amplitude=0.05)]
    ase.io.write(tmp_path / "both.xyz", frames)
    command = ["md", "rmd17-ethanol", "both.xyz@-1", "--relax", "--ensemble", "nve"]
    command += ["--ps", "0.01", "--output", "out", "--trajectory", "t.xyz"]
    assert main(command) == 0
    first = ase.io.read(tmp_path / "out" / "t.xyz", 0)
    assert np.abs(first.get_forces()).max() < 0.01
    assert float(rows(tmp_path / "out")[0]["temperature_K"]) == pytest.approx(600)
    messages.clear()
    assert main(["0.02" if word == "0.01" else word for word in command]) == 0
    assert "Resuming from step 20" in messages.text
    assert "Relaxing" not in messages.text


def test_md_of_a_committee_and_of_another_model(ethanol, tmp_path, messages):
    save_model(LKMCalculator("rmd17-ethanol", "cpu").model, tmp_path / "copy.safetensors")
    models = ["rmd17-ethanol", "copy.safetensors"]
    command = ["--steps", "10", "--output", "out", "--device", "cpu"]
    assert main(["md", *models, ethanol, *command]) == 0
    assert main(["md", models[0], ethanol, *command]) == 1
    assert "models was" in messages.text
    rattled(amplitude=0.03).write(tmp_path / ethanol)
    assert main(["md", *models, ethanol, *command]) == 1
    assert "structure was 'SHA-256" in messages.text


def test_md_that_goes_wrong(tmp_path, messages):
    atoms = rattled(amplitude=0.3)
    atoms.write(tmp_path / "bad.xyz")
    command = ["md", "rmd17-ethanol", "bad.xyz", "--timestep", "5", "--steps", "400"]
    assert main([*command, "--output", "out", "--frame-every", "1"]) == 1
    assert "lkm-calc: Stopped at step" in messages.text
    assert all(
        np.isfinite(frame.positions).all() for frame in ase.io.read("out/trajectory.traj", ":")
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--steps", "0"], "has 0 steps"),
        (["--temperature", "-5"], "temperature is -5.0"),
        (["--restart-every", "0"], "restart_every is 0"),
        (["--trajectory", "t.pdb"], "ends in .traj, .xyz or .extxyz"),
        (["--keep-velocities"], "structure has no velocities"),
        (["--device", "abacus"], "device 'abacus' cannot be"),
        (["--skin", "-1"], "skin is -1"),
    ],
)
def test_md_refuses_values(option, message, ethanol, tmp_path, messages):
    assert main(["md", "rmd17-ethanol", ethanol, *option]) == 1
    assert message in messages.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("optimiser", ["bfgs", "fire2"])
def test_relax(optimiser, ethanol, tmp_path, messages):
    command = ["relax", "rmd17-ethanol", ethanol, "--fmax", "0.05", "--optimiser", optimiser]
    assert main([*command, "--trajectory", "steps.traj"]) == 0
    relaxed = ase.io.read("ethanol-relaxed.xyz")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.05
    steps = ase.io.read("steps.traj", ":")
    assert len(steps) > 2
    assert np.abs(steps[-1].positions - relaxed.positions).max() < 1e-6
    assert f"Relaxed in {len(steps) - 1} steps ({optimiser})" in messages.text
    assert main([*command, "--steps", "1", "-o", "part.xyz"]) == 1
    assert "not relaxed to 0.05 eV/Å within 1 steps" in messages.text
    assert len(ase.io.read("part.xyz")) == 9
    assert main([*command, "--cell"]) == 1
    assert "no cell to relax" in messages.text
    assert main([*command, "--fmax", "0"]) == 1


def test_relax_a_cell(model_of_crystals, tmp_path):
    crystal().write("crystal.xyz")
    command = ["relax", model_of_crystals, "crystal.xyz", "--cell", "--fmax", "0.02"]
    assert main([*command, "-o", "relaxed.xyz"]) == 0
    found = ase.io.read("relaxed.xyz")
    assert np.abs(found.get_stress()).max() * found.get_volume() / len(found) < 0.02
    assert np.abs(found.cell - crystal().cell).max() > 1e-3


def test_evaluate(ethanol, model_of_crystals, tmp_path, capsys):
    frames = [rattled(seed=k) for k in range(3)] + [crystal(seed=k) for k in range(2)]
    ase.io.write("frames.xyz", frames)
    command = ["evaluate", model_of_crystals, "frames.xyz", "--batch-size", "2"]
    assert main([*command, "-o", "out.xyz"]) == 0
    text = capsys.readouterr().out
    assert "contains no energies or forces to compare with" in text
    assert "5 structures, 35 atoms" in text
    calculator = LKMCalculator(model_of_crystals, "cpu")
    for found, expected in zip(ase.io.read("out.xyz", ":"), frames, strict=True):
        results = calculator.evaluate([expected])[0]
        assert found.get_potential_energy() == pytest.approx(results["energy"], abs=1e-6)
        assert np.abs(found.get_forces() - results["forces"]).max() < 1e-5, "8 decimals"
        assert ("stress" in found.calc.results) == found.pbc.all()
    assert np.abs(found.get_stress() - results["stress"]).max() < 1e-6
    assert main(["evaluate", model_of_crystals, "frames.xyz@:2"]) == 0
    assert "2 structures, 18 atoms" in capsys.readouterr().out


def test_evaluate_against_labels(model_of_crystals, capsys, messages):
    frames = [rattled(seed=k) for k in range(3)] + [crystal()]
    calculator = LKMCalculator(model_of_crystals, "cpu")
    for atoms, results in zip(frames, calculator.evaluate(frames), strict=True):
        shift = 0.018 if len(atoms) == 9 else 0.008
        labels = {"energy": results["energy"] + shift, "forces": results["forces"] - 0.1}
        if "stress" in results:
            labels["stress"] = results["stress"] + 0.002
        atoms.calc = SinglePointCalculator(atoms, **labels)
    ase.io.write("labelled.xyz", frames)
    assert main(["evaluate", model_of_crystals, "labelled.xyz"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["energy", "15.50", "16.09", "meV", "4"] in table
    assert ["energy", "per", "atom", "2.00", "2.00", "meV", "4"] in table
    assert ["forces", "100.00", "100.00", "meV/Å", "4"] in table
    assert ["stress", "2.00", "2.00", "meV/Å³", "1"] in table
    assert main(["evaluate", model_of_crystals, "labelled.xyz", "-o", "out.traj"]) == 1
    assert "must end in .xyz" in messages.text
    assert main(["evaluate", model_of_crystals, "labelled.xyz", "--batch-size", "0"]) == 1
    assert "batch_size is 0" in messages.text


def test_vib(ethanol, tmp_path, capsys, messages):
    command = ["vib", "rmd17-ethanol", ethanol, "--device", "cpu"]
    assert main([*command, "-o", "vib.json", "--modes", "modes.xyz"]) == 0
    text = capsys.readouterr().out
    assert "cm^-1" in text
    assert "Zero-point energy: 2." in text
    data = ase.io.jsonio.read_json("vib.json")
    frequencies = data.get_frequencies()
    assert len(frequencies) == 27
    assert np.abs(frequencies[:6]).max() < 30
    assert 3600 < frequencies[-1].real < 3900, "the O-H stretch"
    assert len(ase.io.read("modes.xyz", ":")) == 27
    assert main([*command, "--no-relax"]) == 1
    assert "not a stationary point" in messages.text


def test_info_and_models(capsys, model_of_crystals):
    assert main(["info", "rmd17-ethanol"]) == 0
    text = capsys.readouterr().out
    for fact in ("ace", "121,929", "H, C, O", "5 Å", "950 frames", "2.32", "0.5 MB"):
        assert fact in text
    assert main(["info", "rmd17-ethanol", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 121_929
    assert facts["provenance"]["test_errors"]["force_mae"] == pytest.approx(2.32, abs=0.01)
    assert main(["info", model_of_crystals]) == 0, "a model without provenance"
    assert "not calibrated" in capsys.readouterr().out
    assert main(["info", "none"]) == 1
    assert main(["models"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("rmd17-ethanol")]
    assert line.split() == ["rmd17-ethanol", "H", "C", "O", "0.37", "2.32", "121,929", "0.5"]

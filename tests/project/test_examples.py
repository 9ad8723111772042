"""The examples, run as a user runs them, shortened by --quick."""

import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.socketio import SocketClient
from ase.io import read, write
from ase.units import invcm

from lkm_calc import MODELS, LKMCalculator, load_model, save_model
from lkm_calc.potential.checkpoint import ModelFileError
from lkm_calc.testing import CHECKS, PhysicsError, check_model
from studies.generality import write_stand_in
from train.doctor.examine import diagnose
from train.formats.hdf5 import read_hdf5, write_hdf5

from ..support import ROOT, shared_data, small_model


def run(script, folder, *arguments):
    command = [sys.executable, ROOT / "md_examples" / script, "--quick", "--output", folder]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def read_log(path):
    with path.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["time_ps", "potential_eV", "kinetic_eV", "temperature_K"]
    return np.array(rows[1:], dtype=float)


def test_nve_ethanol(tmp_path):
    printed = run("nve_ethanol.py", tmp_path)
    drift = float(re.search(r"drift (\S+) meV/atom/ps", printed)[1])
    log = read_log(tmp_path / "energies.csv")
    assert len(log) == 1001
    assert log[-1, 0] == 0.5
    assert 200 < log[:, 3].mean() < 400
    total = 1000 * (log[:, 1] + log[:, 2]) / 9
    assert drift == float(f"{np.polyfit(log[:, 0], total, 1)[0]:+.2e}")
    assert np.ptp(total) < 2.0, "half an meV an atom or so, of 26 per degree of freedom"
    assert len(read(tmp_path / "trajectory.traj", ":")) == 51
    assert (tmp_path / "energies.png").stat().st_size > 10_000


def test_langevin_aspirin(tmp_path):
    printed = run("langevin_aspirin.py", tmp_path, "--temperatures", "300", "500")
    for kelvin in (300, 500):
        found = re.search(rf"{kelvin} K: mean temperature (\d+) ± (\d+) K.* 0 of 21 bonds", printed)
        mean, error = map(float, found.groups())
        # 63 degrees of freedom, and 50 fs hold one independent value at a friction of 0.02 / fs.
        assert error == round(kelvin * (2 / 63) ** 0.5)
        assert abs(mean - kelvin) < 3 * error
        log = read_log(tmp_path / f"aspirin_{kelvin}K.csv")
        assert len(log) == 101
        assert np.isfinite(log).all()
        assert len(read(tmp_path / f"aspirin_{kelvin}K.traj", ":")) == 11
    assert (tmp_path / "aspirin.png").stat().st_size > 10_000


def test_sweep_parsl(tmp_path, monkeypatch):
    pytest.importorskip("parsl")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    runs = [tmp_path / name for name in ("ethanol-0", "ethanol-40")]
    printed = run("sweep_parsl.py", tmp_path, "--", "--optimiser.epochs", "2")
    for folder in runs:
        found = re.search(rf"{folder.name} +(\S+) +(\S+)", printed).groups()
        result = json.loads((folder / "result.json").read_text())
        assert result["config"]["optimiser"]["epochs"] == 2
        errors = [result["validation_errors"][name] for name in ("energy_mae", "force_mae")]
        assert [float(text) for text in found] == pytest.approx(errors, abs=0.01)
    logs = [(folder / "log.txt").stat().st_mtime_ns for folder in runs]
    assert "ethanol-40" in run("sweep_parsl.py", tmp_path)
    assert logs == [(folder / "log.txt").stat().st_mtime_ns for folder in runs], "not trained again"


def test_the_frames_that_come_along_are_sound():
    frames = read_hdf5(ROOT / "md_examples" / "ethanol_gfn2.h5")
    assert len(frames) == 500
    assert not diagnose(frames).faulty
    assert (ROOT / "md_examples" / "ethanol_gfn2.h5").stat().st_size < 1_000_000


def test_make_ethanol_gfn2(tmp_path):
    pytest.importorskip("tblite")
    run("make_ethanol_gfn2.py", tmp_path)
    assert len(read_hdf5(tmp_path / "ethanol_gfn2.h5")) == 12


def test_active_learning(tmp_path):
    pytest.importorskip("tblite")
    printed = run("active_learning.py", tmp_path / "run")
    means = [float(x) for x in re.findall(r"hot frames (\d+) meV/Å in the", printed)]
    frames = [int(x) for x in re.findall(r"(\d+) frames: force error", printed)]
    assert frames[0] == 25
    assert frames[1] > 30
    assert means[1] < 0.8 * means[0]
    kept = read(tmp_path / "run" / "simulation-1.extxyz", ":")
    assert frames[1] == 25 + min(25, len(kept))
    assert not any("energy" in (atoms.calc.results if atoms.calc else {}) for atoms in kept)
    assert (tmp_path / "run" / "active_learning.png").stat().st_size > 10_000


def test_replicas_torchsim(tmp_path):
    pytest.importorskip("torch_sim", reason="torch-sim is not installed (needs Python 3.12)")
    printed = run("replicas_torchsim.py", tmp_path, "--replicas", "12", "--no-compile")
    assert float(re.search(r"Batch of 12: (\S+) times", printed)[1]) > 1
    log = read_log(tmp_path / "log.csv")
    assert len(log) == 20
    assert 150 < log[-1, 3] < 600
    last = read(tmp_path / "last.xyz", ":")
    assert len({atoms.get_distance(0, 1) for atoms in last}) == 12, "no two alike"
    assert (tmp_path / "dihedrals.png").stat().st_size > 10_000


def test_openmm_ethanol(tmp_path):
    pytest.importorskip("openmmml", reason="OpenMM-ML is not installed")
    printed = run("openmm_ethanol.py", tmp_path)
    assert abs(float(re.search(r"(\S+) meV from what ASE gets", printed)[1])) < 1e-3
    assert float(re.search(r"forces: (\S+) meV/Å", printed)[1]) < 1e-3
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 101
    assert (tmp_path / "trajectory.dcd").stat().st_size > 1000


def run_ipi(folder, forcefield=None, steps=20):
    """Run a copy of the example and return its table; with another force field, through it."""
    shutil.copytree(ROOT / "md_examples" / "ipi_ethanol", folder)
    text = (folder / "input.xml").read_text(encoding="utf-8")
    text = text.replace("<total_steps> 20", f"<total_steps> {steps}")
    if forcefield:
        text = re.sub("<ffdirect.*</ffdirect>", forcefield, text, flags=re.DOTALL)
    (folder / "input.xml").write_text(text, encoding="utf-8")
    command = [sys.executable, Path(sys.executable).parent / "i-pi", "input.xml"]
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        if forcefield:
            serve_ipi(folder / "ethanol.xyz", re.search("<address> (.*) </", forcefield)[1])
        printed, _ = server.communicate(timeout=300)
    finally:
        server.kill()
    assert server.returncode == 0, printed
    return np.loadtxt(folder / "ethanol.out")


def serve_ipi(structure, address):
    """Compute for an i-PI server over a socket, as docs/engines.md says, until it is done."""
    atoms = read(structure)
    atoms.calc = LKMCalculator("rmd17-ethanol", device="cpu", dtype="float64")
    for _ in range(300):
        try:
            client = SocketClient(unixsocket=address, timeout=100)
        except (FileNotFoundError, ConnectionRefusedError):  # not up yet
            time.sleep(0.2)
        else:
            client.run(atoms)
            return
    raise TimeoutError("i-PI never opened its socket.")


def test_ipi_ethanol_in_one_batch_and_over_a_socket(tmp_path):
    pytest.importorskip("ipi", reason="i-PI is not installed")
    table = run_ipi(tmp_path / "direct")
    _, time_fs, conserved, _, potential, kinetic = table.T
    np.testing.assert_allclose(time_fs, 0.25 * np.arange(21))
    assert np.ptp(conserved) < 0.01, "eV"
    assert np.ptp(potential) > 0.1, "eV: the beads spread"
    assert kinetic[-1] > 0.5, "eV: above the classical 0.35"
    assert len(list((tmp_path / "direct").glob("ethanol.pos_?.xyz"))) == 4
    address = f"lkm_test_{uuid.uuid4().hex[:12]}"
    other = run_ipi(
        tmp_path / "socket",
        f'<ffsocket name="lkm" mode="unix" pbc="False"><address> {address} </address></ffsocket>',
        steps=5,
    )
    # ASE and i-PI convert units with constants that differ by 1e-7.
    np.testing.assert_allclose(other, table[:6], rtol=1e-6, atol=1e-6)


def test_relax_and_vibrate(tmp_path):
    printed = run("relax_and_vibrate.py", tmp_path)
    table = re.findall(r"^ *(\d+) +(-?[\d.]+) +(\d+) +(\d+) +(\d+)$", printed, re.MULTILINE)
    assert [int(row[0]) for row in table] == list(range(27))
    assert all(99 <= sum(map(int, row[2:])) <= 101 for row in table)
    wavenumbers = np.array([float(row[1]) for row in table])
    assert np.abs(wavenumbers[:6]).max() < 50, "translation and rotation"
    assert 3650 < wavenumbers[-1] < 3760, "the O-H stretch, harmonic"
    assert int(table[-1][3]) > 90, "which is hydrogen's"
    energy = float(re.search(r"Zero-point energy: (\S+) eV", printed)[1])
    assert energy == pytest.approx(wavenumbers[6:].sum() / 2 * invcm, abs=2e-3)
    frames = read(tmp_path / "mode.xyz", ":")
    assert len(frames) == 30
    moved = np.linalg.norm([f.positions - frames[0].positions for f in frames], axis=2).max(0)
    assert moved.max() == pytest.approx(0.5, abs=0.01)
    assert moved.argmax() == 3, "the hydrogen of the hydroxyl"
    assert (tmp_path / "frequencies.png").stat().st_size > 10_000


def test_nose_hoover_ethanol(tmp_path):
    printed = run("nose_hoover_ethanol.py", tmp_path)
    found = re.search(r"mean (\d+) ± .* canonical 300; standard deviation (\d+) K", printed)
    assert abs(float(found[1]) - 300) < 100
    assert "canonical 93" in printed, "300 √(2/21) K: 21 degrees of freedom"
    assert 50 < float(found[2]) < 140
    assert abs(float(re.search(r"drift (\S+) meV", printed)[1])) < 1
    again = run("nose_hoover_ethanol.py", tmp_path)
    assert "Going on from step 1000" in again
    assert (tmp_path / "temperature.png").stat().st_size > 10_000


def test_dihedral_scan_ethanol(tmp_path):
    printed = run("dihedral_scan_ethanol.py", tmp_path)
    rows = re.findall(r"^ +(-?[\d.]+) +([\d.]+) +([\d.]+)  (\w+)$", printed, re.MULTILINE)
    assert [row[3] for row in rows] == ["minimum", "barrier"] * 3
    angles, mev, kcal = np.array([row[:3] for row in rows], dtype=float).T
    np.testing.assert_allclose(angles, [-61, 0, 61, 122, 180, 238], atol=2)
    np.testing.assert_allclose(mev, [0, 69, 0, 66, 17, 66], atol=2)
    np.testing.assert_allclose(kcal, mev / 43.364, atol=2e-3)
    scan = read(tmp_path / "scan.xyz", ":")
    found = [atoms.get_dihedral(3, 2, 1, 0) for atoms in scan]
    off = (np.array(found) - np.arange(-90, 270, 30) + 180) % 360 - 180
    assert np.abs(off).max() < 0.01
    assert (tmp_path / "scan.png").stat().st_size > 10_000


@pytest.mark.parametrize(("count", "measure"), [(1, "latent_distance"), (2, "force_spread")])
def test_guard_and_committee(tmp_path, count, measure):
    models = ["rmd17-ethanol"]
    if count > 1:
        other = load_model("rmd17-ethanol")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weights in other.parameters():
                weights.mul_(1 + 0.012 * torch.randn(weights.shape, generator=generator))
        models.append(tmp_path / "other.safetensors")
        save_model(other, models[1])
    printed = run("guard_and_committee.py", tmp_path, "--models", *models)
    times = [float(x) for x in re.findall(r"^([\d.]+) fs: The structure", printed, re.MULTILINE)]
    stopped = re.search(r"Stopped after ([\d.]+) fs by (.*): ", printed)
    assert float(stopped[1]) == times[0] - 0.5, "the step before the first warning"
    assert measure in stopped[2]
    assert len(read(tmp_path / "refused.xyz")) == 9
    assert (tmp_path / "guard.png").stat().st_size > 10_000


def test_chignolin(tmp_path):
    start = shared_data("structures/chignolin_cln025_166.pdb")
    model = small_model("pamnet")
    model.known_elements[[1, 6, 7, 8]] = True
    model.scale.fill_(1e-4)  # untrained, it would tear the molecule apart; so it flies on
    file = tmp_path / "model.safetensors"
    save_model(model, file)
    printed = run(
        "chignolin_300K.py", tmp_path, "--start", start, "--model", file, "--temperature", "1"
    )
    assert "0 of 171 bonds broken in 0.05 ps" in printed
    rows = re.findall(r"^(?:PDB|relaxed|at the end) +(\S+) +(\S+) +(\S+)$", printed, re.MULTILINE)
    rmsd, gyration, ends = np.array(rows, dtype=float).T
    atoms = read(start, index=0)
    masses, away = atoms.get_masses(), atoms.positions - atoms.get_center_of_mass()
    expected = (masses @ np.square(away).sum(1) / masses.sum()) ** 0.5
    np.testing.assert_allclose(gyration, expected, atol=0.1)
    np.testing.assert_allclose(ends, atoms.get_distance(0, 163), atol=0.2)
    assert rmsd[0] == 0
    assert 0 < rmsd[2] < 0.2
    assert len(read(tmp_path / "trajectory.traj", ":")) == 11
    assert (tmp_path / "chignolin.png").stat().st_size > 10_000


def test_own_data(tmp_path):
    folder = tmp_path / "new"
    printed = run("own_data.py", folder)
    assert "no faults" in printed
    assert float(re.search(r'"force_mae": (\S+),', printed)[1]) < 300, "of 800 meV/Å"
    for command in ("check-data", "fit", "evaluate"):
        assert f"$ lkm-train {command} {folder}" in printed
    assert len(read(folder / "test.extxyz", ":")) == 30
    assert re.search(r"\d+ steps, outside the known in", printed)
    assert (folder / "md.png").stat().st_size > 10_000


OWN = ROOT / "md_examples" / "own_architecture.py"


def test_own_architecture(tmp_path):
    printed = run(OWN.name, tmp_path)
    assert "The physics battery passes." in printed
    assert "Relaxed: True" in printed
    model = tmp_path / "run" / "model.safetensors"
    with pytest.raises(
        ModelFileError, match="module own_architecture defines it: import that module"
    ):
        load_model(model)
    write(tmp_path / "ethanol.xyz", molecule("CH3CH2OH"))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    command = ["lkm_calc", "relax", model, tmp_path / "ethanol.xyz", "-o", "relaxed.xyz"]
    command = [sys.executable, "-m", *command, "--import", OWN]
    subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    relaxed = read(folder / "relaxed.xyz")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.05
    told = json.loads((tmp_path / "run" / "result.json").read_text())["validation_errors"]
    assert told["force_mae"] < 400, "of 800 meV/Å"


def test_the_page_shows_the_code_of_the_example():
    page = (ROOT / "docs" / "howto" / "own-architecture.md").read_text(encoding="utf-8")
    (shown,) = (b for b in re.findall("```python\n(.*?)```", page, re.DOTALL) if "@register" in b)
    assert shown in OWN.read_text(encoding="utf-8")
    assert "The stiffness jumps where a pair crosses 5 Å." in page


def test_own_architecture_needs_its_cutoff_function(monkeypatch):
    monkeypatch.setattr(MODELS, "_registered", dict(MODELS.registered))
    own = runpy.run_path(str(OWN))
    model = own["OwnSchNet"](hidden=16, num_layers=2)
    check_model(model, set(CHECKS) - {"copies"})  # whose class is of no module
    scope = own["OwnSchNet"].atom_output.__globals__
    monkeypatch.setitem(scope, "cutoff_function", lambda x: (1 + torch.cos(np.pi * x)) / 2)
    with pytest.raises(PhysicsError, match="smoothness: The stiffness jumps where a pair"):
        check_model(model, ["smoothness"])


def test_distil(tmp_path):
    other = load_model("rmd17-ethanol")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.003 * torch.randn(parameter.shape, generator=generator)
    save_model(other, tmp_path / "other.safetensors")
    known = tmp_path / "known.h5"
    few = read_hdf5(ROOT / "md_examples" / "ethanol_gfn2.h5").select(np.arange(20))
    structures = [Atoms(few.numbers[:9], x) for x in few.positions.reshape(20, 9, 3)]
    labels = LKMCalculator("rmd17-ethanol").evaluate(structures)
    energies = np.array([one["energy"] for one in labels])
    forces = np.concatenate([one["forces"] for one in labels])
    write_hdf5(replace(few, energies=energies, forces=forces), known)
    folder, teachers = tmp_path / "new", ("rmd17-ethanol", tmp_path / "other.safetensors")
    mean = LKMCalculator(teachers)
    usual = np.median([extras["force_spread"].max() for _, extras in mean.iterate(structures)])
    printed = run(
        "distil.py", folder, "--teachers", *teachers, "--spread", str(usual), "--data", known,
        "--held-out", "5", "--test", known
    )  # fmt: skip
    agreed = int(re.search(r"agree on (\d+) of 100 structures", printed)[1])
    assert 0 < agreed < 100, "the spread leaves some out"
    lesson = read_hdf5(folder / "lesson.h5")
    assert len(lesson) == 15 + agreed
    assert len(read_hdf5(folder / "held_out.h5")) == 5
    told = load_model(folder / "student" / "model.safetensors").provenance
    assert told["calibration"]["frames"] == 5
    frame = lesson.select(np.array([len(lesson) - 1]))
    expected = mean.evaluate([Atoms(frame.numbers, frame.positions)])[0]
    np.testing.assert_allclose(frame.forces, expected["forces"], atol=1e-5)
    np.testing.assert_allclose(frame.energies, expected["energy"], atol=1e-4)
    student = float(re.search(r"student: force MAE (\S+) meV", printed)[1])
    assert student < 1000 * np.abs(lesson.forces).mean(), "better than no forces"
    assert printed.count("force MAE") == 4


def test_lkm_in_torch_geometric(tmp_path):
    data = write_stand_in(tmp_path / "molecules.npz")
    printed = run(
        "lkm_in_torch_geometric.py", tmp_path, "--data", data, "--gamma", "100", "--epochs", "100"
    )
    rows = re.findall(r"test MAE (\S+) eV, L_KD (\S+), cosine between layers (\S+)", printed)
    (_, lkm, cosine), (_, mixed_lkm, mixed_cosine) = np.array(rows, dtype=float)
    assert mixed_lkm < 0.8 * lkm
    assert mixed_cosine > cosine
    assert (tmp_path / "layers.png").stat().st_size > 10_000

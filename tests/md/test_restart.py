"""MD that was stopped or killed goes on to the numbers of a run that was not, bit for bit."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count

import ase.io
import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms, FixBondLengths
from tqdm import tqdm

from lkm_calc import LKMCalculator
from lkm_calc.__main__ import main
from lkm_calc.compile.kernel_forces import KernelForces
from lkm_calc.md.constant_pressure import CONSTANT_PRESSURE
from lkm_calc.md.ensembles import CONSTANT_VOLUME, ENSEMBLES, MDSettings
from lkm_calc.md.record import RestartError
from lkm_calc.md.simulation import Simulation

from ..argon import argon
from ..springs import spring_molecule
from ..support import ROOT, crystal, rattled, small_model

STEPS = 45


def settings(ensemble="langevin", trajectory="t.traj"):
    pressure = 500.0 if ensemble in CONSTANT_PRESSURE else None
    return MDSettings(
        ensemble, log_every=2, frame_every=3, trajectory=trajectory, pressure=pressure
    )


def structure(ensemble):
    return argon() if ensemble in CONSTANT_PRESSURE else spring_molecule()


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same(folder, expected):
    found = contents(folder)
    assert list(found) == list(expected)
    for name, text in expected.items():
        assert found[name] == text, f"{name} differs"


def run_whole(make, folder, choice, every=1000, steps=STEPS):
    simulation = Simulation(make(), choice, folder, every)
    assert simulation.run(steps)
    return contents(folder)


@pytest.mark.parametrize("trajectory", ["t.traj", "t.xyz"])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_stopped_and_continued(ensemble, trajectory, tmp_path):
    choice = settings(ensemble, trajectory)
    expected = run_whole(lambda: structure(ensemble), tmp_path / "whole", choice)
    for steps in (1, 13, 30, STEPS):
        simulation = Simulation(structure(ensemble), choice, tmp_path / "parts")
        simulation.run(steps)
    assert_same(tmp_path / "parts", expected)
    frames = ase.io.read(tmp_path / "parts" / trajectory, ":")
    assert len(frames) == STEPS // 3 + 1


def molecule_model():
    atoms = rattled(amplitude=0.02)
    atoms.calc = LKMCalculator("rmd17-ethanol", "cpu")
    return atoms


def periodic_model():
    atoms = crystal()
    model = small_model()
    model.scale.mul_(0.01)
    atoms.calc = LKMCalculator(model, "cpu")
    return atoms


@pytest.mark.parametrize(
    ("make", "ensemble"),
    [(molecule_model, name) for name in CONSTANT_VOLUME]
    + [(periodic_model, name) for name in ("nve", *CONSTANT_PRESSURE)],
)
def test_with_a_model(make, ensemble, tmp_path):
    """A new calculator has no memory of the steps before, such as a list of neighbours."""
    choice = settings(ensemble)
    expected = run_whole(make, tmp_path / "whole", choice, steps=20)
    for steps in (7, 20):
        Simulation(make(), choice, tmp_path / "parts").run(steps)
    assert_same(tmp_path / "parts", expected)


def test_with_a_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("LKM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(KernelForces, "_is_faster", lambda *arguments: True)

    def make():
        atoms = rattled(amplitude=0.02)
        atoms.calc = LKMCalculator("rmd17-ethanol", "cpu", compile=True)
        return atoms

    expected = run_whole(make, tmp_path / "whole", settings(), steps=20)
    for steps in (7, 20):
        simulation = Simulation(make(), settings(), tmp_path / "parts")
        simulation.run(steps)
        assert not simulation.atoms.calc.ordinary
    assert_same(tmp_path / "parts", expected)


def test_the_skin_changes_nothing(tmp_path):
    """At 2000 K atoms leave the skin within these steps, and candidates are searched again."""
    hot = MDSettings("nve", temperature=2000.0, log_every=2)
    for skin, parts in ((0.0, (60,)), (0.3, (60,)), (0.3, (23, 37, 60))):
        folder = tmp_path / f"{skin}-{len(parts)}"
        for steps in parts:
            atoms = rattled(amplitude=0.02)
            atoms.calc = LKMCalculator("rmd17-ethanol", "cpu", skin=skin)
            simulation = Simulation(atoms, hot, folder)
            simulation.run(steps)
    assert np.linalg.norm(simulation.atoms.positions - atoms.positions, axis=1).max() > 0.15
    logs = {path.read_text() for path in tmp_path.glob("*/log.csv")}
    assert len(logs) == 1


def test_all_of_the_structure_comes_back(tmp_path):
    def make():
        atoms = spring_molecule()
        atoms.set_cell([[9, 0, 0], [1, 8, 0], [0, 2, 0.1 + 0.2]])
        atoms.set_masses(np.linspace(1, 20, 9))
        atoms.set_tags(range(9))
        atoms.set_constraint([FixAtoms([0]), FixBondLengths([[1, 2]])])
        atoms.info["name"] = "ethanol"
        return atoms

    expected = run_whole(make, tmp_path / "whole", settings())
    Simulation(make(), settings(), tmp_path / "parts").run(20)
    bare = make()
    bare.set_constraint()
    simulation = Simulation(bare, settings(), tmp_path / "parts")
    assert len(simulation.atoms.constraints) == 2
    assert simulation.atoms.info == {"name": "ethanol"}
    assert np.array_equal(simulation.atoms.cell, make().cell)
    assert np.array_equal(simulation.atoms.get_masses(), make().get_masses())
    simulation.run(STEPS)
    assert_same(tmp_path / "parts", expected)


@pytest.mark.parametrize("trajectory", ["t.traj", "t.xyz"])
def test_what_was_written_after_the_restart_file_is_made_again(trajectory, tmp_path):
    choice = settings("bussi", trajectory)
    expected = run_whole(spring_molecule, tmp_path / "whole", choice)
    folder = tmp_path / "parts"
    Simulation(spring_molecule(), choice, folder).run(20)
    saved = (folder / "restart.json").read_bytes()
    Simulation(spring_molecule(), choice, folder).run(31)
    (folder / "restart.json").write_bytes(saved)
    for name in ("log.csv", trajectory):  # half a line, half a frame
        with (folder / name).open("ab") as file:
            file.write(b"3,0.00\x00")
    Simulation(spring_molecule(), choice, folder).run(STEPS)
    assert_same(folder, expected)


def in_child(work):
    """Start a process that does the work; it imports nothing and is therefore quick."""
    child = os.fork()
    if child == 0:
        try:
            # Its own: the usual one is shared by processes, and a killed one never gives it back.
            tqdm.set_lock(threading.RLock())
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("trajectory", ["t.traj", "t.xyz"])
@pytest.mark.parametrize("ensemble", ["langevin", *CONSTANT_PRESSURE])
def test_killed_at_every_operation_on_files(ensemble, trajectory, tmp_path):
    choice, folder = settings(ensemble, trajectory), tmp_path / "parts"
    expected = run_whole(lambda: structure(ensemble), tmp_path / "whole", choice, every=10)

    def work(deadly):
        operations = count(1)

        def hook(event, arguments):
            files = event in ("open", "os.rename", "os.truncate", "os.remove")
            if files and str(folder) in str(arguments[0]) and next(operations) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        Simulation(structure(ensemble), choice, folder, 10).run(STEPS)

    killed = 0
    for deadly in count(1):
        status = os.waitpid(in_child(lambda at=deadly: work(at)), 0)[1]
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
    assert killed >= 15
    temporary = [path for path in folder.iterdir() if path.name.startswith(".")]
    assert len(temporary) < killed
    for path in temporary:  # those that were being written
        path.unlink()
    assert_same(folder, expected)


@pytest.mark.parametrize("ensemble", ["nose-hoover", *CONSTANT_PRESSURE])
def test_killed_at_any_moment(ensemble, tmp_path):
    choice, folder = settings(ensemble), tmp_path / "parts"
    expected = run_whole(lambda: structure(ensemble), tmp_path / "whole", choice, every=4)
    moments = np.random.default_rng(0)

    def work():
        Simulation(structure(ensemble), choice, folder, 4).run(STEPS)

    killed = 0
    for attempt in range(100):
        child = in_child(work)
        time.sleep(moments.uniform(0.002, 0.006) * (1 + attempt))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if (folder / "restart.json").exists():
            simulation = Simulation(structure(ensemble), choice, folder, 4)
            if simulation.step == STEPS:
                break
    assert killed > 2
    for path in folder.glob(".*"):
        path.unlink()
    assert_same(folder, expected)


def test_the_command_is_killed_and_goes_on(tmp_path, monkeypatch, caplog):
    rattled(amplitude=0.02).write(tmp_path / "ethanol.xyz")
    arguments = ["md", "rmd17-ethanol", "ethanol.xyz", "--device", "cpu"]
    arguments += ["--restart-every", "25"]
    threads = str(torch.get_num_threads())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}
    log = tmp_path / "parts" / "log.csv"
    process = subprocess.Popen(
        [sys.executable, "-m", "lkm_calc", *arguments, "--steps", "100000", "--output", "parts"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 10):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    steps = 100 + json.loads((tmp_path / "parts" / "restart.json").read_text())["step"]
    arguments += ["--steps", str(steps)]
    assert main([*arguments, "--output", "parts"]) == 0
    assert "Resuming from step" in caplog.text
    assert main([*arguments, "--output", "whole"]) == 0
    assert caplog.text.count("Resuming") == 1
    names = ("restart.json", "log.csv", "trajectory.traj")
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 310.0}, "temperature was 300.0, is 310.0"),
        ({"ensemble": "nve"}, "ensemble was 'langevin', is 'nve'"),
        ({"seed": 3}, "seed was 0, is 3"),
    ],
)
def test_another_run_is_not_continued(change, message, tmp_path):
    Simulation(spring_molecule(), MDSettings(), tmp_path).run(3)
    before = contents(tmp_path)
    with pytest.raises(RestartError, match=f"contains a different run: {message}.*another folder"):
        Simulation(spring_molecule(), MDSettings(**change), tmp_path)
    assert contents(tmp_path) == before


def test_another_structure_or_model_is_not_continued(tmp_path):
    Simulation(spring_molecule(), MDSettings(), tmp_path, identity={"model": "a"}).run(3)
    with pytest.raises(RestartError, match="model was 'a', is 'b'"):
        Simulation(spring_molecule(), MDSettings(), tmp_path, identity={"model": "b"})
    smaller = spring_molecule()[:-1]
    with pytest.raises(RestartError, match="structure was C2H6O, is C2H5O"):
        Simulation(smaller, MDSettings(), tmp_path, identity={"model": "a"})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1}'])
def test_a_damaged_restart_file_is_refused(text, tmp_path):
    Simulation(spring_molecule(), MDSettings(), tmp_path).run(3)
    (tmp_path / "restart.json").write_text(text)
    with pytest.raises(RestartError, match="is not a readable restart file"):
        Simulation(spring_molecule(), MDSettings(), tmp_path)


def test_a_newer_restart_file_is_refused(tmp_path):
    Simulation(spring_molecule(), MDSettings(), tmp_path).run(3)
    path = tmp_path / "restart.json"
    text = path.read_text().replace('"format_version": 2', '"format_version": 3')
    path.write_text(text)
    with pytest.raises(RestartError, match="has format 3; this lkm-calc reads up to 2"):
        Simulation(spring_molecule(), MDSettings(), tmp_path)


@pytest.mark.parametrize("change", ["position", "checksum"])
def test_an_edited_restart_file_is_refused(change, tmp_path):
    Simulation(spring_molecule(), MDSettings(), tmp_path).run(3)
    path = tmp_path / "restart.json"
    values = json.loads(path.read_text())
    if change == "position":
        values["atoms"]["positions"]["__ndarray__"][2][4] += 1e-9
    else:
        del values["sha256"]
    path.write_text(json.dumps(values))
    before = contents(tmp_path)
    with pytest.raises(RestartError, match="does not match its checksum: it was damaged or edite"):
        Simulation(spring_molecule(), MDSettings(), tmp_path)
    assert contents(tmp_path) == before


def older(path, change=lambda values: None):
    """Turn a restart file into one of before there was a checksum, and edit it."""
    values = json.loads(path.read_text()) | {"format_version": 1}
    del values["sha256"]
    change(values)
    path.write_text(json.dumps(values))


def test_older_restart_files_are_continued_with_a_note(tmp_path, caplog):
    expected = run_whole(spring_molecule, tmp_path / "whole", settings())
    Simulation(spring_molecule(), settings(), tmp_path / "parts").run(20)
    older(tmp_path / "parts" / "restart.json")
    with caplog.at_level(logging.WARNING, "lkm_calc"):
        simulation = Simulation(spring_molecule(), settings(), tmp_path / "parts")
    assert "before restart files had a checksum" in caplog.text
    simulation.run(STEPS)
    assert_same(tmp_path / "parts", expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["files"].update({"../mine.txt": {"size": 0, "head": ""}}), "files are"),
        (lambda v: v["files"]["log.csv"].pop("size"), "files are"),
        (lambda v: v["files"]["log.csv"].update(head="xy"), "files are"),
        (lambda v: v["generator"].pop("state"), "KeyError: 'state'"),
        (lambda v: v.update(step="x"), "step is 'x'"),
        (lambda v: v.update(atoms={}), "atoms is {}"),
        (lambda v: v["forces"]["__ndarray__"][2].__setitem__(0, float("nan")), "not finite"),
        (lambda v: v["forces"]["__ndarray__"].__setitem__(0, [27]), "forces are of shape"),
        (lambda v: v.update(bound=[9]), r"bound is \[9\]"),
        (lambda v: v.pop("thermostat"), "KeyError: 'thermostat'"),
        (lambda v: v.update(thermostat={"eta": 1}), "thermostat is"),
        (lambda v: v.update(bond_lengths=[None]), r"bond_lengths is \[None\]"),
    ],
)
def test_older_restart_files_that_make_no_sense_are_refused(change, message, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    Simulation(spring_molecule(), MDSettings(), tmp_path / "run").run(3)
    older(tmp_path / "run" / "restart.json", change)
    with pytest.raises(RestartError, match=f"is not a readable restart file .*{message}"):
        Simulation(spring_molecule(), MDSettings(), tmp_path / "run")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["log.csv", "trajectory.traj"])
def test_a_lost_file_is_noticed_before_anything_is_touched(name, tmp_path):
    Simulation(spring_molecule(), MDSettings(), tmp_path).run(3)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    before = contents(tmp_path)
    with pytest.raises(RestartError, match=rf"{name} has \d+ bytes but had \d+"):
        Simulation(spring_molecule(), MDSettings(), tmp_path)
    assert contents(tmp_path) == before


def test_a_finished_run_can_be_made_longer(tmp_path):
    expected = run_whole(spring_molecule, tmp_path / "whole", settings())
    simulation = Simulation(spring_molecule(), settings(), tmp_path / "parts")
    assert simulation.run(20)
    assert simulation.run(20), "nothing to do"
    assert simulation.run(STEPS)
    assert_same(tmp_path / "parts", expected)


def test_another_model_is_noticed_by_its_forces(tmp_path):
    Simulation(spring_molecule(), MDSettings(), tmp_path).run(3)
    atoms = spring_molecule()
    atoms.calc = LKMCalculator("rmd17-ethanol", "cpu")
    with pytest.raises(RestartError, match="a run with a different model: the forces"):
        Simulation(atoms, MDSettings(), tmp_path)


@pytest.mark.parametrize("name", ["log.csv", "trajectory.traj"])
def test_files_that_no_run_made_are_kept(tmp_path, name):
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(ValueError, match="does not belong to a run"):
        Simulation(spring_molecule(), MDSettings(), tmp_path).run(3)
    assert (tmp_path / name).read_text() == "mine\n"


def test_a_molecule_in_a_large_box(tmp_path):
    atoms = spring_molecule()
    atoms.set_cell([130, 130, 130])
    atoms.pbc = True
    assert Simulation(atoms, MDSettings(), tmp_path).run(3)

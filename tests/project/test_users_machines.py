"""Machines, folders and terminals as users have them: situations of public bug reports."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from lkm_calc import LKMCalculator
from lkm_calc.__main__ import main
from lkm_calc.compile.kernels.build import library
from lkm_calc.files.atomic import replacing
from lkm_calc.files.program_files import CompileError, cache_folder
from lkm_calc.md.record import RestartError
from lkm_calc.md.simulation import MDSettings, Simulation
from lkm_calc.runtime.locks import FolderInUseError, only_process
from train.config import config_from_table
from train.fit import loop
from train.fit.loop import fit

from ..support import SMALL, rmd17_arrays, write_npz


@pytest.fixture
def data(tmp_path):
    return write_npz(tmp_path / "springs.npz", **rmd17_arrays(60))


def config(data, directory, epochs=3):
    return config_from_table(
        {
            "data": {"train": str(data), "n_train": 40, "n_validation": 15},
            "model": {"name": "dimenet++", "hypers": SMALL["dimenet++"]},
            "optimiser": {"epochs": epochs, "batch_size": 10},
            "run": {"directory": str(directory), "device": "cpu"},
        }
    )


def shell(command, **variables):
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        check=False,
        env=os.environ | {"PY": sys.executable, "OMP_NUM_THREADS": "1"} | variables,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_a_terminal_lacks_are_no_error(encoding):
    found = shell("$PY -m lkm_calc info rmd17-ethanol", PYTHONIOENCODING=encoding)
    assert found.returncode == 0
    assert b"force MAE, meV/" in found.stdout
    assert ("Å".encode() in found.stdout) == (encoding == "utf-8")


def test_json_for_programs_is_whole_in_any_encoding():
    found = shell("$PY -m lkm_calc info rmd17-ethanol --json", PYTHONIOENCODING="ascii")
    assert json.loads(found.stdout)["architecture"] == "ace"


def test_a_reader_that_goes_away_is_no_error_to_talk_of():
    found = shell("$PY -m lkm_calc models | head -c 1")
    assert found.stdout == b"m"
    assert found.stderr == b""


def test_commands_run_with_all_streams_closed(data, tmp_path):
    toml = tmp_path / "run.toml"
    toml.write_text(
        f'[data]\ntrain = "{data}"\nn_train = 40\nn_validation = 15\n'
        '[model]\nname = "dimenet++"\n[model.hypers]\nhidden = 8\nnum_blocks = 1\n'
        f'[optimiser]\nepochs = 1\n[run]\ndirectory = "{tmp_path / "run"}"\ndevice = "cpu"\n'
    )
    ase.io.write(tmp_path / "ethanol.xyz", molecule("CH3CH2OH"))
    md = f"lkm_calc md rmd17-ethanol {tmp_path}/ethanol.xyz --steps 3 --output {tmp_path}/md"
    for command in (f"train fit {toml}", md, "lkm_calc models"):
        assert shell(f"$PY -m {command} <&- >&- 2>&-").returncode == 0, command
    assert (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "md" / "md.png").exists()


def test_a_simulation_runs_where_there_is_no_stderr(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    atoms = molecule("CH3CH2OH")
    atoms.calc = LKMCalculator("rmd17-ethanol", "cpu")
    assert Simulation(atoms, MDSettings(timestep=0.1), tmp_path).run(2)


def test_without_a_home_the_kernel_is_done_without(monkeypatch):
    for name in ("LKM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(CompileError, match="no home directory.*LKM_CACHE"):
        cache_folder()
    plain, quick = (LKMCalculator("rmd17-ethanol", "cpu", compile=kind) for kind in (False, True))
    atoms = molecule("CH3CH2OH")
    with pytest.warns(UserWarning, match="no home directory"):
        energy = quick.get_potential_energy(atoms)
    assert energy == plain.get_potential_energy(atoms)


def test_a_compiler_that_is_no_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "g++ 'x")
    with pytest.raises(CompileError, match="CXX is .*No closing quotation.*unset it"):
        library("dimenetpp", tmp_path / "programs")


def test_a_full_disk_says_which_file_is_not_written(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left.*model\.safetensors"),
        replacing(tmp_path / "model.safetensors") as temporary,
    ):
        temporary.touch()
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def other_process(folder, seconds=60):
    """Start a process that works in a folder, and wait until it does."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from lkm_calc.runtime.locks import only_process\n"
        "with only_process(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"in\n"
    return process


def test_two_runs_cannot_train_in_one_folder(data, tmp_path):
    other = other_process(tmp_path / "run")
    try:
        with pytest.raises(FolderInUseError, match="Another process is using .*run"):
            fit(config(data, tmp_path / "run"))
    finally:
        other.kill()  # which gives the lock back
        other.communicate()
    assert fit(config(data, tmp_path / "run")) is not None


def test_two_runs_cannot_simulate_in_one_folder(tmp_path):
    atoms = molecule("CH3CH2OH")
    atoms.calc = LKMCalculator("rmd17-ethanol", "cpu")
    settings = MDSettings(timestep=0.1, log_every=1)
    Simulation(atoms, settings, tmp_path).run(3)
    log = (tmp_path / "log.csv").read_text()
    other = other_process(tmp_path)
    try:
        with pytest.raises(FolderInUseError):
            Simulation(atoms, settings, tmp_path)
    finally:
        other.kill()
        other.communicate()
    assert (tmp_path / "log.csv").read_text() == log
    assert Simulation(atoms, settings, tmp_path).run(5)


def test_a_run_that_another_process_has_begun_meanwhile_is_left_alone(tmp_path):
    atoms = molecule("CH3CH2OH")
    atoms.calc = LKMCalculator("rmd17-ethanol", "cpu")
    late, early = (Simulation(atoms, MDSettings(timestep=0.1), tmp_path) for _ in range(2))
    early.run(2)
    with pytest.raises(RestartError, match="has started a run in"):
        late.run(2)
    early.run(4)
    assert Simulation(atoms, MDSettings(timestep=0.1), tmp_path).step == 4


def test_a_folder_is_free_again_and_an_empty_one_removed(tmp_path):
    for _ in range(2):
        with only_process(tmp_path / "run"):
            pass
        assert not (tmp_path / "run").exists()
    with only_process(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert (tmp_path / "run" / "file").exists()


def test_file_systems_without_locks_let_everybody_in(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with only_process(tmp_path), only_process(tmp_path):
        pass


@pytest.mark.parametrize("stop", [8, 12])
def test_a_run_whose_best_model_is_gone_ends_with_a_model(
    data, tmp_path, caplog, monkeypatch, stop
):
    scores = itertools.count(1.0)  # no validation is better than the first
    monkeypatch.setattr(loop, "validation_score", lambda *_arguments: next(scores))
    folder = tmp_path / "run"
    fit(config(data, folder), stop_after=stop)  # 12 steps in all
    (folder / "model.safetensors").unlink()
    assert fit(config(data, folder)) == folder / "model.safetensors"
    assert "model.safetensors, the best model so far, is missing" in caplog.text
    assert np.isfinite(json.loads((folder / "result.json").read_text())["step"])
    LKMCalculator(folder / "model.safetensors", "cpu").get_potential_energy(molecule("CH3CH2OH"))


def test_a_moved_run_goes_on_with_moved_data(data, tmp_path):
    fit(config(data, tmp_path / "run"), stop_after=6)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    shutil.move(data, tmp_path / "renamed.npz")
    assert fit(config(tmp_path / "renamed.npz", tmp_path / "moved")) is not None


def test_more_epochs_are_refused_with_a_way_to_have_them(data, tmp_path):
    fit(config(data, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"epochs was 3, is 5.*--finetune MODEL"):
        fit(config(data, tmp_path / "run", epochs=5))


def test_own_output_can_be_given_to_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ase.io.write("ethanol.xyz", molecule("CH3CH2OH"))
    evaluate = ["evaluate", "rmd17-ethanol"]
    assert main([*evaluate, "ethanol.xyz", "-o", "labelled.xyz"]) == 0
    assert main([*evaluate, "labelled.xyz", "-o", "labelled.xyz"]) == 0
    assert "forces                0.00      0.00" in capsys.readouterr().out
    assert main(["relax", "rmd17-ethanol", "labelled.xyz", "-o", "relaxed.xyz"]) == 0
    assert main(["relax", "rmd17-ethanol", "relaxed.xyz", "-o", "relaxed.xyz"]) == 0
    assert main(["md", "rmd17-ethanol", "relaxed.xyz", "--steps", "3", "--output", "md"]) == 0
    assert main([*evaluate, "md/trajectory.traj"]) == 0
    assert main(["vib", "rmd17-ethanol", "relaxed.xyz"]) == 0


def test_warnings_as_errors_and_optimised_python_change_nothing():
    code = (
        "from lkm_calc import LKMCalculator; from ase.build import molecule; "
        "print(LKMCalculator('rmd17-ethanol', 'cpu').get_potential_energy(molecule('CH3CH2OH')))"
    )
    of_ase = ["-W", "ignore::DeprecationWarning:ase.atoms"]  # of NumPy 2.5
    energies = {
        subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, check=True).stdout
        for flags in ([], ["-O"], ["-W", "error", *of_ase])
    }
    assert len(energies) == 1

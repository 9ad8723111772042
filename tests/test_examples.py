"""The examples, run as a user runs them, shortened by --quick."""

import csv
import re
import subprocess
import sys

import numpy as np
import pytest
from ase.io import read

from train.doctor import diagnose
from train.hdf5 import read_hdf5

from .support import ROOT


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
        assert re.search(rf"{kelvin} K: mean temperature .* 0 of 21 bonds broken", printed)
        log = read_log(tmp_path / f"aspirin_{kelvin}K.csv")
        assert len(log) == 101
        assert np.isfinite(log).all()
        assert len(read(tmp_path / f"aspirin_{kelvin}K.traj", ":")) == 11
    assert (tmp_path / "aspirin.png").stat().st_size > 10_000


def test_the_frames_that_come_along_are_sound():
    frames = read_hdf5(ROOT / "md_examples" / "ethanol_gfn2.h5")
    assert len(frames) == 500
    assert not diagnose(frames).faulty
    assert (ROOT / "md_examples" / "ethanol_gfn2.h5").stat().st_size < 1_000_000


def test_make_ethanol_gfn2(tmp_path):
    pytest.importorskip("tblite")
    run("make_ethanol_gfn2.py", tmp_path)
    assert len(read_hdf5(tmp_path / "ethanol_gfn2.h5")) == 12

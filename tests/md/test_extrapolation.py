"""The log of the steps outside the training distribution."""

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from lkm_calc import LKMCalculator, Thresholds
from lkm_calc.md import MDError, MDSettings, Simulation
from lkm_calc.md.extrapolation import ExtrapolationLog, ExtrapolationRow
from lkm_calc.uncertainty.guards import Excess

LIMIT = 0.65
"""Threshold of the latent distance that a hot molecule exceeds at times."""


def simulation(folder, action="save", every=1000):
    atoms = molecule("CH3CH2OH")
    atoms.calc = LKMCalculator(
        "rmd17-ethanol",
        "cpu",
        on_extrapolation=action,
        extrapolation_file=folder / "extrapolation.extxyz",
        thresholds=Thresholds(latent_distance=LIMIT) if action else None,
    )
    settings = MDSettings(temperature=1200.0, frame_every=1, log_every=5)
    return Simulation(atoms, settings, folder, every)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of 60 steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert simulation(folder).run(60)
    return folder


def test_the_steps_are_those_of_the_frames_outside(whole):
    frames = ase.io.read(whole / "trajectory.traj", ":")
    calculator = LKMCalculator("rmd17-ethanol", "cpu")
    found = {}
    for step, atoms in enumerate(frames):
        calculator.calculate(atoms)
        distances = np.asarray(calculator.extras["latent_distance"])
        if distances.max() > LIMIT:
            found[step] = (int(distances.argmax()), distances.max())
    log = ExtrapolationLog(whole / "extrapolation.csv")
    rows = [row for row in log.rows() if row.measure == "latent_distance"]
    assert 0 < len(rows) < len(frames)
    assert {row.step: (*row.atoms, pytest.approx(row.value)) for row in rows} == found
    assert all(row.threshold == LIMIT for row in rows)
    assert [row.time_ps for row in rows] == [row.step * 0.5 / 1000 for row in rows]
    assert log.steps() == len(found)


def test_a_resumed_run_writes_the_same(whole, tmp_path):
    expected = (whole / "extrapolation.csv").read_text()
    assert simulation(tmp_path).run(30)
    path = tmp_path / "extrapolation.csv"
    with path.open("a") as file:  # killed after the restart file was written
        file.write("31,0.0155,latent_distance,1.5,0.65,2\n32,0.01")
    assert simulation(tmp_path).run(60)
    assert path.read_text() == expected


def test_a_guard_that_stops_the_run_is_logged(whole, tmp_path):
    first = ExtrapolationLog(whole / "extrapolation.csv").rows()[0]
    run = simulation(tmp_path, "stop")
    with pytest.raises(MDError, match="outside the training distribution"):
        run.run(60)
    log = ExtrapolationLog(tmp_path / "extrapolation.csv")
    assert log.rows()[0] == first
    assert {row.step for row in log.rows()} == {run.step + 1}


def test_runs_without_a_guard_have_no_such_log(tmp_path):
    assert simulation(tmp_path, None).run(2)
    assert not (tmp_path / "extrapolation.csv").exists()
    assert simulation(tmp_path, "save").run(4), "the guard was added"
    assert (tmp_path / "extrapolation.csv").exists()


def test_lines_are_read_as_they_were_written(tmp_path):
    log = ExtrapolationLog(tmp_path / "log.csv")
    assert log.steps() == 0
    log.begin()
    assert log.rows() == []
    log.add(7, 0.1 + 0.2, [Excess("closest", (3, 5), 1 / 3, 0.9, ""), Excess("x", (1,), 2, 1, "")])
    log.add(8, 0.5, [Excess("x", (1,), 2.0, 1.0, "")])
    first = ExtrapolationRow(7, 0.1 + 0.2, "closest", 1 / 3, 0.9, (3, 5))
    assert log.rows()[0] == first
    assert log.steps() == 2
    log.rewind(7)
    assert log.rows() == [first, ExtrapolationRow(7, 0.1 + 0.2, "x", 2.0, 1.0, (1,))]


@pytest.mark.parametrize("text", ["step\n1\n", "noise\nmore\n", "step,atoms\nx,1\n"])
def test_a_damaged_log_is_refused(text, tmp_path):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=r"log.csv is damaged .* remove it"):
        ExtrapolationLog(tmp_path / "log.csv").rows()

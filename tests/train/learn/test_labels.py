"""Labels of structures: kept one by one, from calculators and commands."""

import sys

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from train.config import ConfigError
from train.data import DataError
from train.learn.labels import check_labels_source, label_structures

from ...support import rattled, spring_labels
from ..sampling.springs import NAME, Springs
from ..sampling.test_dynamics import fresh  # noqa: F401

SCRIPT = """\
import sys, ase.io
from ase.calculators.emt import EMT
images = ase.io.read(sys.argv[1], ":")
for atoms in images:
    atoms.calc = EMT()
    atoms.get_forces()
{change}
ase.io.write(sys.argv[2], images, format="extxyz")
"""


def structures(count=6):
    return [rattled("CH3CH2OH", amplitude=0.05, seed=k) for k in range(count)]


def command(path, change=""):
    script = path / "label.py"
    script.write_text(SCRIPT.format(change=change))
    return f"{sys.executable} {script} {{structures}} {{labels}}"


@pytest.mark.parametrize("jobs", [1, 2])
def test_labels_are_those_of_the_calculator(tmp_path, jobs):
    frames = label_structures(structures(), NAME, tmp_path, jobs).frames
    energies, forces = spring_labels(np.array([atoms.positions for atoms in structures()]))
    assert frames.energies == pytest.approx(energies + 4321.0)
    assert frames.forces == pytest.approx(forces.reshape(-1, 3), abs=1e-6)
    expected = np.concatenate([atoms.positions for atoms in structures()])
    assert frames.positions == pytest.approx(expected, abs=1e-7)


def test_a_stopped_call_continues(tmp_path):
    class Signals(list):
        def __bool__(self):
            return Springs.calls >= 4

    assert label_structures(structures(), NAME, tmp_path, stop=Signals()) is None
    assert len(list(tmp_path.iterdir())) == 4
    assert len(label_structures(structures(), NAME, tmp_path).frames) == 6
    assert Springs.calls == 6


def test_failures_are_left_out(tmp_path, caplog):
    Springs.fails = (range(2, 4),)
    frames, indices = label_structures(structures(), NAME, tmp_path)
    assert indices.tolist() == [0, 3, 4, 5]
    kept = np.concatenate([structures()[k].positions for k in (0, 3, 4, 5)])
    assert frames.positions == pytest.approx(kept, abs=1e-7)
    assert "failed for 2 of 6 structures" in caplog.text
    Springs.fails = ()  # they would not fail any more, but are not tried again
    assert label_structures(structures(), NAME, tmp_path).indices.tolist() == [0, 3, 4, 5]
    Springs.fails = (range(1, 1000),)
    with pytest.raises(DataError, match="failed for all structures.*Check that it can compute"):
        label_structures(structures(), NAME, tmp_path / "other")


def test_broken_molecules_are_left_out(tmp_path, caplog):
    broken = molecule("CH3CH2OH")
    broken.positions[3] += 4.0
    merged = molecule("CH3CH2OH")
    merged.positions[3] = merged.positions[0] + [0.2, 0.0, 0.0]
    frames, indices = label_structures([broken, merged, *structures(2)], NAME, tmp_path)
    assert indices.tolist() == [2, 3]
    assert len(frames) == 2
    assert "1 of 3 labelled structures have forces above 30 eV/Å" in caplog.text
    assert "1 of 4 structures have atoms closer than 0.3 Å" in caplog.text
    with pytest.raises(DataError, match="too close to each other in all structures"):
        label_structures([merged], NAME, tmp_path / "merged")
    with pytest.raises(DataError, match="No labelled structure .* below 30 eV/Å. Check the unit"):
        label_structures([broken], NAME, tmp_path / "other")


def test_a_command(tmp_path):
    small = [rattled("H2O", amplitude=0.02, seed=k) for k in range(3)]
    small[0].info["energy"] = 1.0
    frames = label_structures(small, command(tmp_path), tmp_path / "labels").frames
    images = ase.io.read(tmp_path / "labels" / "labels.extxyz", ":")
    assert frames.energies == pytest.approx([a.get_potential_energy() for a in images])
    (tmp_path / "label.py").unlink()
    other = command(tmp_path, "raise SystemExit(1)")
    assert len(label_structures(small, other, tmp_path / "labels").frames) == 3


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ("raise SystemExit(3)", ConfigError, "ended with exit status 3"),
        ("raise SystemExit(0)", ConfigError, "did not write"),
        ("images.reverse()", DataError, "not contain the structures .* in the same order"),
        ("images.pop()", DataError, "not contain the structures"),
    ],
)
def test_commands_that_fail(tmp_path, change, error, text):
    small = [rattled("H2O", amplitude=0.1, seed=k) for k in range(3)]
    with pytest.raises(error, match=text):
        label_structures(small, command(tmp_path, change), tmp_path / "labels")


def test_a_stopped_command_is_no_error(tmp_path):
    small = [rattled("H2O", amplitude=0.1)]
    killed = command(tmp_path, "raise SystemExit(130)")
    assert label_structures(small, killed, tmp_path / "labels", stop=[2]) is None


@pytest.mark.parametrize("labels", ["label.py {structures}", "label.py {labels}"])
def test_incomplete_commands_are_refused(labels):
    with pytest.raises(ConfigError, match="lacks {"):
        check_labels_source(labels)

import re
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.data import chemical_symbols
from matplotlib.image import imread

from lkm_calc.units import KCAL_PER_MOL
from train.data.frames import Frames
from train.doctor.consistency.bonds import compare_bonds
from train.doctor.examine import diagnose
from train.doctor.plots import plot_report
from train.doctor.report import report_text
from train.formats.chignolin import read_chignolin
from train.formats.md17 import read_md17

from ...support import shared_data, spring_labels

HARTREE, BOHR = 27.211386, 0.529177


def springs(n_frames=120, seed=0, amplitude=0.06):
    """Frames of ethanol held by springs, each turned and moved as a whole."""
    atoms, rng = molecule("CH3CH2OH"), np.random.default_rng(seed)
    positions = atoms.positions + rng.normal(0, amplitude, (n_frames, len(atoms), 3))
    positions = np.array([r @ turn(rng) + rng.normal(size=3) for r in positions])
    energies, forces = spring_labels(positions)
    return Frames.of_one_molecule(atoms.numbers.astype(np.int64), positions, energies, forces)


def turn(rng):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.linalg.det(q)


def ethanol():
    path = shared_data("rmd17/rmd17_ethanol_train_01.npz")
    return read_md17(path, check_units=False).select(np.arange(300))


SOURCES = pytest.mark.parametrize("source", [springs, ethanol])


def joined(*parts):
    arrays = {
        name: np.concatenate([getattr(p, name) for p in parts])
        for name in ("numbers", "positions", "energies", "forces")
    }
    sizes = np.concatenate([p.sizes for p in parts])
    return Frames(**arrays, starts=np.concatenate([[0], np.cumsum(sizes)]))


def changed(frames, name, index, value):
    array = getattr(frames, name).copy()
    array[index] = value
    return replace(frames, **{name: array})


def faults(frames):
    return {f.name: f.message for f in diagnose(frames).findings if f.severity == "fault"}


def notes(frames):
    return {f.name: f.message for f in diagnose(frames).findings if f.severity == "note"}


@SOURCES
def test_good_frames_are_clean(source):
    report = diagnose(source())
    assert not report.faulty, report_text(report, "file")
    assert [f.name for f in report.findings] == ["reference energies"]
    assert report.figures.pairs.slope == pytest.approx(1, abs=0.1)
    assert report.figures.net_force < 1e-6


@pytest.mark.parametrize("labels", ["revised", "original"])
@pytest.mark.parametrize("name", ["aspirin_train", "ethanol_train", "paracetamol_test"])
def test_genuine_files_are_clean(name, labels):
    frames = read_md17(shared_data(f"rmd17/rmd17_{name}_01.npz"), labels, check_units=False)
    assert faults(frames) == {}


def chignolin():
    return read_chignolin(shared_data("chignolin/chignolin_gfn2.npz"), check_units=False)


def test_genuine_chignolin_is_clean_and_its_faults_are_found():
    frames = chignolin().select(np.arange(180))
    assert faults(frames) == {}
    assert "few similar frames" in notes(frames)
    assert "sign of forces" in faults(replace(frames, forces=-frames.forces))
    assert "shuffled energies" in faults(replace(frames, energies=np.roll(frames.energies, 1)))
    forces = np.roll(frames.forces, 166, axis=0)
    assert "shuffled forces" in faults(replace(frames, forces=forces))
    assert "energies look like kcal/mol" in faults(
        replace(frames, energies=frames.energies / KCAL_PER_MOL)
    )["units"]  # fmt: skip


@SOURCES
@pytest.mark.parametrize(
    ("energy", "force", "length", "looks"),
    [
        (KCAL_PER_MOL, 1, 1, "energies look like kcal/mol, forces like eV/Å, positions like Å"),
        (1, KCAL_PER_MOL, 1, "energies look like eV, forces like kcal/mol/Å, positions like Å"),
        (KCAL_PER_MOL, KCAL_PER_MOL, 1, "energies look like kcal/mol, forces like kcal/mol/Å"),
        (HARTREE, HARTREE / BOHR, 1, "energies look like Hartree, forces like Hartree/Bohr"),
        (HARTREE, HARTREE / BOHR, BOHR, "like Hartree/Bohr, positions like Bohr"),
        (1, HARTREE / BOHR, 1, "energies look like eV, forces like Hartree/Bohr"),
        (1, 1, BOHR, "forces like eV/Å, positions like Bohr"),
        (1 / KCAL_PER_MOL, 1 / KCAL_PER_MOL, 1, "forces like eV/Å converted as if they were kcal"),
    ],
)
def test_units(source, energy, force, length, looks):
    # The numbers are in these units, and called eV, eV/Å and Å.
    good = source()
    wrong = replace(
        good,
        energies=good.energies / energy,
        forces=good.forces / force,
        positions=good.positions / length,
    )
    assert looks in faults(wrong)["units"]


@pytest.mark.parametrize("factor", [BOHR, 1 / BOHR])
def test_bohr_for_angstrom_without_similar_frames(factor):
    frames = chignolin().select(np.arange(180))
    wrong = replace(frames, forces=frames.forces * factor)
    assert diagnose(wrong).figures.pairs is None
    found = faults(wrong)
    assert list(found) == ["units"]
    force = "forces like eV/Bohr" if factor < 1 else "forces like Hartree/Å converted as if"
    assert f"energies look like eV, {force}" in found["units"]
    assert "positions like Å" in found["units"]


def test_bonds():
    frames = springs(60)
    bonds = compare_bonds(frames)
    assert bonds.stiffness == pytest.approx(18.0, abs=0.5)  # 30 / 1.09⁶ and what is around
    assert bonds.n_bonds > 200
    gradient = compare_bonds(replace(frames, forces=-2 * frames.forces))
    assert gradient.stiffness == pytest.approx(2 * bonds.stiffness)
    assert gradient.correlation == pytest.approx(-bonds.correlation)
    assert compare_bonds(replace(frames, forces=np.zeros_like(frames.forces))) is None
    assert compare_bonds(replace(frames, forces=np.roll(frames.forces, 36, axis=0))) is None
    assert compare_bonds(replace(frames, numbers=np.full_like(frames.numbers, 6))) is None
    assert compare_bonds(springs(60, amplitude=0.003)) is None  # as if held rigid


@SOURCES
def test_sign_of_forces(source):
    good = source()
    found = faults(replace(good, forces=-good.forces))
    assert list(found) == ["sign of forces"]
    assert "multiply them by −1" in found["sign of forces"]


@SOURCES
def test_shuffled_energies(source):
    good = source()
    order = np.random.default_rng(0).permutation(len(good))
    assert list(faults(replace(good, energies=good.energies[order]))) == ["shuffled energies"]


def test_energies_partly_shuffled():
    good = springs(200)
    rng = np.random.default_rng(0)
    energies = good.energies.copy()
    some = rng.permutation(200)[:50]
    energies[some] = rng.permutation(energies[some])
    assert list(faults(replace(good, energies=energies))) == ["mixed labels"]


def shuffled(frames, share, names=("energies",), seed=0):
    """The frames with labels of a share of them shuffled among themselves, and which."""
    rng, order = np.random.default_rng(seed), np.arange(len(frames))
    some = rng.permutation(len(frames))[: round(share * len(frames))]
    order[some] = rng.permutation(some)
    other = frames.select(order)
    return replace(frames, **{name: getattr(other, name) for name in names}), some


def named(message):
    return {int(n) for n in re.findall(r"\d+", re.split(" and |, of", message)[0])}


@pytest.mark.parametrize("source", [lambda: springs(300), ethanol], ids=["springs", "ethanol"])
def test_energies_of_a_twentieth_shuffled(source):
    wrong, some = shuffled(source(), 0.05)
    found = faults(wrong)
    assert list(found) == ["mixed labels"]
    assert len(named(found["mixed labels"]) & set(some.tolist())) >= 4


@pytest.mark.parametrize("names", [("energies",), ("energies", "forces")])
@pytest.mark.parametrize("name", ["aspirin_train", "ethanol_test", "paracetamol_train"])
def test_a_twentieth_of_a_genuine_file_shuffled(name, names):
    frames = read_md17(shared_data(f"rmd17/rmd17_{name}_01.npz"), check_units=False)
    assert "mixed labels" in faults(shuffled(frames, 0.05, names)[0])


def test_a_fiftieth_of_chignolin_shuffled():
    wrong, some = shuffled(chignolin(), 0.02)
    found = faults(wrong)
    assert list(found) == ["mixed labels"]
    assert named(found["mixed labels"]) <= set(some.tolist())


def test_hot_and_clustered_frames_are_not_mixed_up():
    hot = joined(springs(280), springs(20, seed=1, amplitude=0.15))
    assert "mixed labels" not in faults(hot)
    near = joined(springs(200, amplitude=0.01), springs(20, seed=1))
    assert "mixed labels" not in faults(near)


def test_suspects_are_counted_in_the_file():
    wrong, some = shuffled(springs(200), 0.05)
    bad = joined(changed(springs(30, seed=3), "energies", slice(None), np.nan), wrong)
    message = faults(bad)["mixed labels"]
    assert len({n - 30 for n in named(message)} & set(some.tolist())) >= 4


@SOURCES
def test_shuffled_forces(source):
    good = source()
    order = np.random.default_rng(0).permutation(len(good))
    found = faults(replace(good, forces=good.select(order).forces))
    assert "shuffled forces" in found or "shuffled energies" in found
    assert "net torque" in found


@SOURCES
def test_duplicates(source):
    good = source()
    assert "duplicates" not in faults(good)
    again = good.select(np.array([3, 7, 7]))
    moved = again.positions @ turn(np.random.default_rng(5)) + 1.0
    found = faults(joined(good, replace(again, positions=moved)))
    n = len(good)
    assert f"frames {n}, {n + 1}, {n + 2} repeat" in found["duplicates"]
    assert "(first: frame 3)" in found["duplicates"]
    near = replace(again, positions=again.positions + np.linspace(0, 3e-4, 27 * 3).reshape(27, 3))
    assert "near duplicates" in notes(joined(good, near))


def test_a_file_of_copies_takes_no_longer_than_another():
    found = faults(springs().select(np.zeros(3000, np.int64)))
    assert "and 2994 more repeat" in found["duplicates"]


@SOURCES
@pytest.mark.parametrize("name", ["positions", "forces", "energies"])
def test_nan_is_reported_and_the_rest_examined(source, name):
    good = source()
    bad = changed(good, name, 9 * 5 if name != "energies" else 5, np.nan)
    found = faults(bad)
    assert list(found) == ["not finite"]
    assert f"{name} contain NaN or infinity in frame 5." in found["not finite"]
    gradient = replace(bad, forces=-bad.forces)
    assert set(faults(gradient)) == {"not finite", "sign of forces"}


@SOURCES
@pytest.mark.parametrize("distance", [0.3, 0.0])
def test_atoms_too_close(source, distance):
    good = source()
    bad = changed(good, "positions", 9 * 8 + 4, good.positions[9 * 8 + 2] + [distance, 0, 0])
    found = faults(bad)
    assert "in frame 8;" in found["too close"]
    a, b = (chemical_symbols[good.numbers[k]] for k in (2, 4))
    assert f"atoms 2 ({a}) and 4 ({b}) are {distance:.3g} Å apart" in found["too close"]


def test_atoms_too_close_through_the_cell():
    frames = crystals(3)
    frames.positions[:4] = [[0, 0, 0], [2.0, 2.0, 0], [2.0, 0, 2.0], [4.9, 0.05, 0.0]]
    frames.cells[0] = np.diag([5.1, 4.0, 4.0])
    found = faults(frames)
    assert "frame 0;" in found["too close"]
    assert "are 0.206 Å apart" in found["too close"]
    assert "too close" not in faults(replace(frames, pbc=np.zeros_like(frames.pbc)))


def crystals(n_frames, seed=0):
    atoms = bulk("Al", cubic=True)
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.1, (n_frames, len(atoms), 3))
    return Frames(
        numbers=np.tile(atoms.numbers, n_frames).astype(np.int64),
        positions=(atoms.positions + noise).reshape(-1, 3),
        energies=rng.normal(-14.0, 0.1, n_frames),
        starts=np.arange(n_frames + 1) * len(atoms),
        cells=np.tile(atoms.cell.array, (n_frames, 1, 1)),
        pbc=np.ones((n_frames, 3), bool),
    )


def test_duplicates_of_crystals_wrapped_elsewhere():
    frames = crystals(30)
    assert faults(frames) == {}
    frames.positions[4 * 29 :] = frames.positions[:4] + frames.cells[0][1] * [[0], [1], [-2], [0]]
    frames.positions[4 * 29 :] += 0.3
    assert "frame 29 repeat" in faults(frames)["duplicates"]


@SOURCES
def test_outliers(source):
    good = source()
    assert "energies of frame 11 lie" in faults(
        changed(good, "energies", 11, good.energies[11] + 100.0)
    )["outliers"]  # fmt: skip
    forces = good.forces.copy()
    forces[9 * 12 : 9 * 13] *= 100
    assert "forces of frame 12 lie" in faults(replace(good, forces=forces))["outliers"]


@SOURCES
def test_unbalanced_forces(source):
    good = source()
    forces = good.forces + np.array([0.5, 0, 0])
    assert "net force" in faults(replace(good, forces=forces))


def test_mixed_compositions():
    small = molecule("H2O")
    rng = np.random.default_rng(1)
    n = 30
    water = Frames.of_one_molecule(
        small.numbers.astype(np.int64),
        small.positions + rng.normal(0, 0.05, (n, 3, 3)),
        -2000.0 + rng.normal(0, 0.05, n),
        np.zeros((n, 3, 3)),
    )
    report = diagnose(joined(springs(40), water))
    assert [(c.formula, c.n_frames) for c in report.figures.compositions] == [
        ("C2H6O", 40),
        ("H2O", 30),
    ]
    assert report.figures.references.rank == 2
    assert "composition" in report_text(report, "f")


def test_files_that_say_little(tmp_path):
    few = springs(3)
    assert faults(few) == {}
    assert {"few frames", "few similar frames"} <= set(notes(few))
    bare = replace(springs(30), forces=None)
    assert faults(bare) == {}
    assert "no forces" in notes(bare)
    atom = Frames(
        numbers=np.array([2]),
        positions=np.zeros((1, 3)),
        energies=np.array([-79.0]),
        starts=np.array([0, 1]),
        forces=np.zeros((1, 3)),
    )
    for frames in (few, bare, atom):
        report = diagnose(frames)
        assert report_text(report, "file").startswith(f"file: {len(frames)} frames, no faults")
        plot_report(frames, report, tmp_path / "report.png")


def test_nothing_usable(tmp_path):
    bad = springs(4)
    bad.energies[:] = np.inf
    strange = springs(4)
    strange.numbers[:] = 0
    for frames, name in ((bad, "not finite"), (strange, "elements")):
        report = diagnose(frames)
        assert report.faulty
        assert {f.name for f in report.findings} == {name, "empty"}
        assert "FAULT" in report_text(report, "file")
        plot_report(frames, report, tmp_path / "report.png")


def test_atoms_that_flew_apart():
    frames = springs()
    frames.positions[9 * 2] += 1e5
    assert "frame 2" in faults(frames)["geometry"]
    assert "sign of forces" not in faults(frames)


def test_text_and_picture(tmp_path):
    frames = changed(springs(), "energies", 4, np.nan)
    report = diagnose(frames)
    text = report_text(report, "some.npz")
    assert text.startswith("some.npz: 120 frames, 1 fault(s)")
    assert "C2H6O                    119" in text
    assert "FAULT  not finite: energies contain NaN or infinity in frame 4." in text
    plot_report(frames, report, tmp_path / "report.png")
    assert imread(tmp_path / "report.png").shape[1] > 1000


def copper(n_frames=30):
    """Frames of a periodic cell held by the springs of EMT."""
    images = [bulk("Cu", "fcc", 3.6, cubic=True) for _ in range(n_frames)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.08, seed=seed)
        atoms.calc = EMT()
    return Frames(
        numbers=np.concatenate([a.numbers for a in images]),
        positions=np.concatenate([a.positions for a in images]),
        starts=np.arange(0, 4 * n_frames + 1, 4),
        energies=np.array([a.get_potential_energy() for a in images]),
        forces=np.concatenate([a.get_forces() for a in images]),
        cells=np.array([a.cell.array for a in images]),
        pbc=np.ones((n_frames, 3), bool),
    )


def lone_atoms():
    return Frames.of_one_molecule(
        np.array([1]), np.zeros((5, 1, 3)), np.full(5, -13.6), np.zeros((5, 1, 3))
    )


def without_forces(frames):
    return replace(frames, forces=np.zeros_like(frames.forces))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (copper(), ["net force, torque       not tested: all frames are periodic"]),
        (copper(3), ["force constant F²/kT    unknown: no composition has 20 frames"]),
        (without_forces(springs()), ["net force, torque       not tested: all forces are zero"]),
        (lone_atoms(), ["shortest distance       unknown: no atoms are close to each other"]),
        (replace(springs(30), energies=np.full(30, -100.0)), ["is 0.00. The energies belong to"]),
    ],
)
def test_what_cannot_be_judged_is_said_in_words(frames, expected):
    text = report_text(diagnose(frames), "file")
    for words in expected:
        assert words in text
    assert not re.search(r"\b(nan|inf)\b", text)

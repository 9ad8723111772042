import warnings

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule

from lkm_calc import LKMCalculator
from lkm_calc.uncertainty.collection import MAX_DISTANCES, Collection, fingerprint
from lkm_calc.uncertainty.guards import ExtrapolationError, ExtrapolationWarning, Guard, Thresholds

from ..embeddings.test_latent import calibrated
from ..support import crystal, small_model


@pytest.fixture
def methane():
    """Its distances are 1.09 and 1.78 Å, beyond the closest of the calibration."""
    return molecule("CH4")


def latent(*values):
    return {"latent_distance": np.array(values)}


QUIET = latent(0.1, 0.1, 0.1, 0.1, 0.1)


def test_what_is_known_passes(methane):
    guard = Guard([calibrated()], "stop")
    guard(methane, QUIET)
    guard(methane, latent(1.29, 1.3, 0, 0, 0))
    assert guard.counts == {}


def test_distance_of_a_single_model(methane):
    guard = Guard([calibrated()], "stop")
    with pytest.raises(ExtrapolationError, match=r"atom 2 \(H\) is 1.31 \(threshold 1.3;") as stop:
        guard(methane, latent(1.29, 0.1, 1.31, 0, 0))
    (excess,) = stop.value.excesses
    assert (excess.measure, excess.atoms, excess.value) == ("latent_distance", (2,), 1.31)
    assert stop.value.atoms == methane
    assert stop.value.atoms is not methane
    lenient = Guard([calibrated()], "stop", thresholds=Thresholds(latent_distance=np.inf))
    lenient(methane, latent(99.0, 0, 0, 0, 0))


def test_spread_of_a_committee(methane):
    models = [calibrated(0), calibrated(1)]
    guard = Guard(models, "stop")
    guard(methane, {"force_spread": np.array([0.39, 0, 0, 0, 0])})
    with pytest.raises(ExtrapolationError, match=r"atom 4 \(H\) is 0.41 eV/Å \(threshold 0.4\)"):
        guard(methane, {"force_spread": np.array([0.39, 0, 0, 0, 0.41])})
    guard = Guard(models, "stop", thresholds=Thresholds(force_spread=0.05))
    with pytest.raises(ExtrapolationError, match=r"atom 0 \(C\)"):
        guard(methane, {"force_spread": np.array([0.39, 0, 0, 0, 0])})


def test_atoms_too_close(methane):
    guard = Guard([calibrated()], "stop")
    vector = methane.positions[1] - methane.positions[0]
    methane.positions[1] = methane.positions[0] + 0.91 / np.linalg.norm(vector) * vector
    guard(methane, QUIET)
    methane.positions[1] = methane.positions[0] + 0.89 / np.linalg.norm(vector) * vector
    with pytest.raises(ExtrapolationError, match=r"are 0.89 Å apart.*threshold 0.9\)") as stop:
        guard(methane, QUIET)
    assert set(stop.value.excesses[0].atoms) == {0, 1}
    Guard([calibrated()], "stop", thresholds=Thresholds(closest=0.0))(methane, QUIET)


def test_images_too_close():
    atoms = ase.Atoms("C", cell=[1.2, 9, 9], pbc=True)
    with pytest.raises(ExtrapolationError, match=r"atom 0 \(C\) and atom 0 \(C\) are 1.2 Å"):
        Guard([calibrated()], "stop")(atoms, latent(0.0))
    atoms.pbc = False
    Guard([calibrated()], "stop")(atoms, latent(0.0))


def test_one_warning_for_each_measure(methane):
    guard = Guard([calibrated()], "warn")
    loud = latent(2.0, 0, 0, 0, 0)
    with pytest.warns(ExtrapolationWarning, match="latent distance of atom 0"):
        guard(methane, loud)
    with warnings.catch_warnings(action="error"):
        guard(methane, loud)
        guard(methane, loud)
    methane.positions *= 0.5
    with pytest.warns(ExtrapolationWarning, match="closer than any such pair") as told:
        guard(methane, loud)
    assert "latent" not in str(told[0].message)
    assert guard.counts == {"latent_distance": 4, "closest": 1}


def test_frames_are_kept_once_and_without_labels(methane, tmp_path):
    file = tmp_path / "new" / "hard.extxyz"
    guard = Guard([calibrated()], "save", file)
    methane.set_momenta(np.ones((5, 3)))
    guard(methane, QUIET)
    assert not file.exists()
    loud = latent(2.0, 0, 0, 0, 0)
    turned = methane[[0, 3, 2, 4, 1]]
    turned.rotate(50, (1, 2, 3))
    turned.positions += 7
    stretched = methane.copy()
    stretched.positions[1] *= 1.3
    with warnings.catch_warnings(action="error"):
        for atoms in (methane, turned, stretched, methane):
            guard(atoms, loud)
    assert guard.counts == {"latent_distance": 4}
    kept = ase.io.read(file, ":")
    assert len(kept) == len(guard.collection) == 2
    for atoms, expected in zip(kept, (methane, stretched), strict=True):
        assert (atoms.numbers == expected.numbers).all()
        np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-7)
        assert atoms.info == {"latent_distance": 2.0}
        assert set(atoms.arrays) == {"numbers", "positions"}
        assert atoms.calc is None


def test_a_later_run_goes_on_with_the_file(methane, tmp_path):
    file = tmp_path / "hard.extxyz"
    assert Collection(file).add(methane, {})
    later = Collection(file)
    assert not later.add(methane, {})
    cell = crystal()
    assert later.add(cell, {"closest": 0.7})
    assert not Collection(file).add(cell, {})
    back = ase.io.read(file, ":")
    assert len(back) == 2
    np.testing.assert_allclose(back[1].cell, cell.cell, atol=1e-7)
    assert back[1].pbc.all()


def test_the_collection_has_a_limit(methane, tmp_path):
    collection = Collection(tmp_path / "hard.extxyz", limit=1)
    assert collection.add(methane, {})
    assert not collection.add(molecule("C2H6"), {})
    assert len(collection) == 1


def test_a_file_that_is_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("no structures")
    with pytest.raises(ValueError, match="notes.txt cannot be read as extxyz.*Choose another"):
        Collection(tmp_path / "notes.txt")


def test_tolerance(methane, tmp_path):
    collection = Collection(tmp_path / "hard.extxyz", tolerance=0.2)
    assert collection.add(methane, {})
    longer = methane.copy()
    direction = longer.positions[1] / np.linalg.norm(longer.positions[1])
    longer.positions[1] += 0.1 * direction
    assert not collection.add(longer, {})
    longer.positions[1] += 0.15 * direction
    assert collection.add(longer, {})


def test_fingerprints_are_small():
    atoms = ase.Atoms("H60", np.random.default_rng(0).uniform(0, 20, (60, 3)))
    found = fingerprint(atoms)
    assert len(found) == MAX_DISTANCES
    first, second = np.triu_indices(60, 1)
    distances = atoms.get_all_distances()[first, second]
    assert found[0] == pytest.approx(distances.min())
    assert found[-1] == pytest.approx(distances.max())
    assert len(fingerprint(ase.Atoms("H"))) == 0


def test_refusals():
    bare = small_model()
    with pytest.raises(ValueError, match="on_extrapolation is 'shout'; choose 'warn'"):
        Guard([calibrated()], "shout")
    with pytest.raises(ValueError, match="no calibration. Run lkm-train calibrate"):
        Guard([bare], "warn")
    with pytest.raises(ValueError, match="no calibration.*Thresholds"):
        Guard([bare, bare], "warn")
    with pytest.warns(UserWarning, match="cannot detect atoms that are too close"):
        Guard([bare, bare], "warn", thresholds=Thresholds(force_spread=0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Guard([bare, bare], "warn", thresholds=Thresholds(force_spread=0.3, closest=0.0))


def test_the_calculator_stops_each_time_and_keeps_no_results(methane):
    methane.positions[1] *= 0.7
    methane.calc = LKMCalculator(calibrated(), on_extrapolation="stop")
    for _ in range(2):
        with pytest.raises(ExtrapolationError, match="closer") as stop:
            methane.get_forces()
        assert methane.calc.results == {}
    np.testing.assert_array_equal(stop.value.atoms.positions, methane.positions)


def test_the_calculator_saves_and_goes_on(methane, tmp_path):
    models = [calibrated(0), calibrated(1)]
    plain, file = LKMCalculator(models), tmp_path / "hard.extxyz"
    methane.calc = LKMCalculator(
        models,
        on_extrapolation="save",
        extrapolation_file=file,
        thresholds=Thresholds(force_spread=1e-6),
    )
    expected = plain.evaluate([methane])[0]["forces"]
    np.testing.assert_array_equal(methane.get_forces(), expected)
    assert methane.calc.guard.counts == {"force_spread": 1}
    assert len(ase.io.read(file, ":")) == 1
    assert LKMCalculator(models).guard is None


def test_two_collections_of_one_file_keep_each_others_structures(tmp_path):
    file = tmp_path / "hard.extxyz"
    first, second = Collection(file), Collection(file)
    assert first.add(molecule("CH4"), {})
    assert second.add(molecule("H2O"), {})
    assert not second.add(molecule("CH4"), {})
    assert [len(atoms) for atoms in ase.io.read(file, ":")] == [5, 3]


def test_strained_cells_are_not_alike(tmp_path):
    collection = Collection(tmp_path / "hard.extxyz")
    for strain in (0.8, 1.0, 1.2):
        cell = bulk("Cu")
        cell.set_cell(cell.cell * strain, scale_atoms=True)
        assert collection.add(cell, {})


def test_a_last_line_without_an_end_is_completed(tmp_path):
    file = tmp_path / "hard.extxyz"
    file.write_text("1\n\nH 0 0 0")
    assert Collection(file).add(molecule("H2O"), {})
    assert [len(atoms) for atoms in ase.io.read(file, ":")] == [1, 3]


def test_thresholds_without_a_guard_are_refused():
    with pytest.raises(ValueError, match="needs a guard: set on_extrapolation"):
        LKMCalculator(small_model(), thresholds=Thresholds(closest=0.8))

import numpy as np
import pytest

from lkm_calc.units import KCAL_PER_MOL
from train.data.frames import DataError
from train.formats.md17 import read_md17

from ...support import rmd17_arrays, shared_data, write_npz


@pytest.fixture
def path(tmp_path):
    return write_npz(tmp_path / "rmd17.npz", **rmd17_arrays())


def test_units_are_converted_once(path):
    frames, raw = read_md17(path), rmd17_arrays()
    assert pytest.approx(0.0433641, rel=1e-6) == KCAL_PER_MOL
    np.testing.assert_allclose(frames.energies, raw["energies"] * KCAL_PER_MOL, rtol=1e-15)
    np.testing.assert_allclose(frames.forces, raw["forces"].reshape(-1, 3) * KCAL_PER_MOL)
    np.testing.assert_array_equal(frames.positions, raw["coords"].reshape(-1, 3))
    assert frames.energies.dtype == np.float64
    assert len(frames) == 60
    assert frames.sizes.tolist() == [9] * 60
    assert frames.numbers[:9].tolist() == raw["nuclear_charges"].tolist()


def test_original_labels(path):
    difference = read_md17(path, "original").energies - read_md17(path).energies
    np.testing.assert_allclose(difference, KCAL_PER_MOL, atol=1e-9)


def test_md17_layout(tmp_path, path):
    raw = rmd17_arrays()
    old = write_npz(
        tmp_path / "md17.npz",
        z=raw["nuclear_charges"],
        R=raw["coords"],
        E=raw["energies"][:, None],
        F=raw["forces"],
        name="ethanol",
    )
    for labels in ("revised", "original"):
        np.testing.assert_array_equal(read_md17(old, labels).energies, read_md17(path).energies)


@pytest.mark.parametrize(
    ("molecule", "labels", "mean"),
    [
        ("ethanol", "revised", -97076.26),
        ("ethanol", "original", -97196.11),
        ("aspirin", "revised", -406274.64),
        ("aspirin", "original", -406737.48),
    ],
)
def test_genuine_files(molecule, labels, mean):
    frames = read_md17(shared_data(f"rmd17/rmd17_{molecule}_train_01.npz"), labels)
    assert len(frames) == 1000
    assert frames.energies.mean() / KCAL_PER_MOL == pytest.approx(mean, abs=0.01)
    assert 1.0 < frames.forces.std() < 1.5


def without(*names):
    return {k: v for k, v in rmd17_arrays().items() if k not in names}


def changed(name, change):
    arrays = rmd17_arrays()
    arrays[name] = change(arrays[name])
    return arrays


def with_nan(array, frame):
    array = array.copy()
    array[frame] = np.nan
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without("forces"), "contains the arrays coords, energies.*must contain .*forces.*Rename"),
        ({}, "contains the arrays none"),
        (changed("coords", lambda a: a[:-1]), r"inconsistent shapes: .*coords \(59, 9, 3\)"),
        (changed("coords", lambda a: a[:, :-1]), r"inconsistent shapes: .*coords \(60, 8, 3\)"),
        (changed("forces", lambda a: a[..., :2]), r"inconsistent shapes: .*forces \(60, 9, 2\)"),
        (changed("energies", lambda a: a.sum()), r"inconsistent shapes: .*energies \(\)"),
        (rmd17_arrays(frames=0), "at least 1"),
        (changed("forces", lambda a: a.astype(str)), "forces has dtype <U.*not numeric"),
        (changed("coords", lambda a: with_nan(a, 7)), r"positions contain NaN.*1 frame.*\[7\]"),
        (changed("forces", lambda a: with_nan(a, 3)), r"forces contain NaN.*\[3\]"),
        (changed("energies", lambda a: with_nan(a, 5)), r"energies contain NaN.*\[5\]"),
        (changed("nuclear_charges", lambda a: a * 0), r"\[0\] are not valid atomic numbers"),
        (changed("nuclear_charges", lambda a: a + 0.5), "non-integer values"),
        (changed("coords", lambda a: a * 0.1), "two atoms of frame 0 are 0.1.* Å apart"),
        (changed("nuclear_charges", lambda a: a + 95), "are not valid atomic numbers"),
    ],
    ids=[
        "missing key", "no keys", "frames", "atoms", "components", "scalar", "empty", "text",
        "nan positions", "nan forces", "nan energy", "number zero",
        "half numbers", "nanometres", "number 101",
    ],
)  # fmt: skip
def test_unusable_arrays(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        read_md17(write_npz(tmp_path / "bad.npz", **arrays))


@pytest.mark.parametrize(
    "factor",
    [KCAL_PER_MOL, 1 / 627.5, 4.184, 1000.0],
    ids=["eV", "Hartree", "kJ/mol", "cal/mol"],
)
def test_energies_and_forces_in_another_unit(tmp_path, factor):
    arrays = rmd17_arrays()
    for name in ("energies", "forces"):
        arrays[name] = arrays[name] * factor
    path = write_npz(tmp_path / "unit.npz", **arrays)
    with pytest.raises(DataError, match="plausible|electrons") as refused:
        read_md17(path)
    assert "kcal/mol" in str(refused.value)
    assert "data.check_units = false" in str(refused.value)
    assert len(read_md17(path, check_units=False)) == 60


@pytest.mark.parametrize("name", ["energies", "forces"])
def test_one_of_the_two_in_ev(tmp_path, name):
    arrays = changed(name, lambda a: a * KCAL_PER_MOL)
    with pytest.raises(DataError, match="force constant"):
        read_md17(write_npz(tmp_path / "unit.npz", **arrays))


def test_damaged_files(tmp_path, path):
    with pytest.raises(DataError, match="does not exist"):
        read_md17(tmp_path / "none.npz")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="not a readable npz file.*truncated"):
        read_md17(path)
    path.write_text("energy 1.0\n")
    with pytest.raises(DataError, match="not a readable npz file"):
        read_md17(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="not a readable npz file"):
        read_md17(tmp_path / "one.npy")
    compressed = tmp_path / "compressed.npz"
    np.savez_compressed(compressed, **rmd17_arrays())
    content = bytearray(compressed.read_bytes())
    content[len(content) // 2] ^= 0xFF
    compressed.write_bytes(content)
    with pytest.raises(DataError, match="not a readable npz file"):
        read_md17(compressed)


def test_unknown_labels(path):
    with pytest.raises(DataError, match="labels is 'new'; choose 'revised' or 'original'"):
        read_md17.__wrapped__(path, "new")


def test_pickled_arrays_are_not_loaded(tmp_path):
    path = write_npz(tmp_path / "p.npz", **changed("energies", lambda a: a.astype(object)))
    with pytest.raises(DataError, match="not a readable npz file"):
        read_md17(path)


def test_own_files_in_this_layout_may_have_other_units(tmp_path):
    path = write_npz(tmp_path / "a.npz", **rmd17_arrays())
    usual, other = read_md17(path), read_md17(path, "revised", False, "Hartree", "Bohr")
    np.testing.assert_allclose(other.energies, usual.energies * 627.5095, rtol=1e-6)
    np.testing.assert_allclose(other.positions, usual.positions * 0.5291772, rtol=1e-6)
    np.testing.assert_allclose(other.forces, usual.forces * 1185.821, rtol=1e-6)
    with pytest.raises(DataError, match="energy_unit is 'cal'"):
        read_md17(path, energy_unit="cal")

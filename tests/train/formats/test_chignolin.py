import ase.units
import numpy as np
import pytest

from train.data.frames import DataError
from train.formats.chignolin import SELF_ENERGIES, read_chignolin

from ...support import rmd17_arrays, shared_data, write_npz

KCAL_IN_HARTREE = ase.units.kcal / ase.units.mol / ase.units.Hartree
KCAL_PER_ANGSTROM_IN_ATOMIC = KCAL_IN_HARTREE * ase.units.Bohr


def chignolin_arrays(frames=30):
    """The springs of rMD17 as flat arrays in atomic units, with gradients instead of forces."""
    raw = rmd17_arrays(frames)
    n_atoms = len(raw["nuclear_charges"])
    return {
        "id": np.arange(frames),
        "N": np.full(frames, n_atoms),
        "Z": np.tile(raw["nuclear_charges"], frames),
        "R": raw["coords"].reshape(-1, 3),
        "E": raw["energies"] * KCAL_IN_HARTREE,
        "F": -raw["forces"].reshape(-1, 3) * KCAL_PER_ANGSTROM_IN_ATOMIC,
    }


def changed(name, change):
    arrays = chignolin_arrays()
    arrays[name] = change(arrays[name])
    return arrays


def with_nan(array, row):
    array = array.copy()
    array[row] = np.nan
    return array


def test_units_and_the_sign_of_forces(tmp_path):
    frames = read_chignolin(write_npz(tmp_path / "c.npz", **chignolin_arrays()))
    raw = rmd17_arrays(30)
    kcal = ase.units.kcal / ase.units.mol
    np.testing.assert_allclose(frames.energies, raw["energies"] * kcal, rtol=1e-12)
    np.testing.assert_allclose(frames.forces, raw["forces"].reshape(-1, 3) * kcal, rtol=1e-9)
    np.testing.assert_array_equal(frames.positions, raw["coords"].reshape(-1, 3))
    assert frames.sizes.tolist() == [9] * 30
    assert frames.numbers.dtype == np.int64


def test_sizes_may_differ(tmp_path):
    arrays = {
        "N": np.array([2, 3], np.uint8),
        "Z": np.array([1, 1, 8, 1, 1]),
        "R": np.array([[0, 0, 0], [0.8, 0, 0], [0, 0, 0], [0, 0.8, 0.6], [0, -0.8, 0.6]]),
        "E": np.array([-1.1, -76.4], np.float32),
        "F": np.full((5, 3), 0.02),
    }
    frames = read_chignolin(write_npz(tmp_path / "c.npz", **arrays))
    assert frames.starts.tolist() == [0, 2, 5]
    assert frames.select(np.array([1])).numbers.tolist() == [8, 1, 1]
    np.testing.assert_allclose(frames.forces, -0.02 * ase.units.Hartree / ase.units.Bohr)
    assert frames.energies.dtype == np.float64


def test_self_energies():
    assert SELF_ENERGIES[1] == pytest.approx(-13.5149, abs=1e-3)
    assert list(SELF_ENERGIES) == [1, 6, 7, 8, 16]


def mean_hydrogen_force_constant(frames):
    """Fit the force along bonds of hydrogen to carbon against their length, in eV/Å²."""
    r, f = (a.reshape(len(frames), -1, 3) for a in (frames.positions, frames.forces))
    numbers = frames.numbers[: r.shape[1]]
    distances = np.linalg.norm(r[0, :, None] - r[0, None], axis=-1)
    slopes = []
    for h in np.flatnonzero(numbers == 1):
        heavy = np.argmin(np.where(numbers > 1, distances[h], np.inf))
        if numbers[heavy] == 6:
            bond = r[:, h] - r[:, heavy]
            length = np.linalg.norm(bond, axis=-1)
            slopes.append(np.polyfit(length, (f[:, h] * bond).sum(-1) / length, 1)[0])
    return -np.mean(slopes)


def test_genuine_layout():
    frames = read_chignolin(shared_data("chignolin/chignolin_gfn2.npz"))
    assert len(frames) == 1250
    assert frames.sizes.tolist() == [166] * 1250
    assert np.bincount(frames.numbers[:166])[[1, 6, 7, 8]].tolist() == [73, 62, 11, 20]
    assert frames.energies[0] == pytest.approx(-284.01007487 * 27.211386, abs=1e-4)
    assert 1.0 < frames.forces.std() < 1.5
    # A negative force constant would mean gradients for forces: stretched C–H bonds pull.
    assert mean_hydrogen_force_constant(frames) > 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({k: v for k, v in chignolin_arrays().items() if k != "F"}, "lacks the array.*F; it con"),
        (changed("R", lambda a: a[:-1]), r"R has shape \(269, 3\), not \(270, 3\)"),
        (changed("R", lambda a: a.reshape(30, 9, 3)), r"R has shape \(30, 9, 3\), not \(270, 3\)"),
        (changed("Z", lambda a: a[:-9]), r"Z has shape \(261,\), not \(270,\)"),
        (changed("F", lambda a: a[:, :2]), r"F has shape \(270, 2\), not \(270, 3\)"),
        (changed("E", lambda a: a[:-1]), r"E has shape \(29,\), not \(30,\)"),
        (changed("N", lambda a: a + 1), r"R has shape \(270, 3\), not \(300, 3\)"),
        (changed("N", lambda a: a * 0), "N has shape .* minimum 0"),
        (changed("N", lambda a: a[:0]), r"N has shape \(0,\)"),
        (changed("N", lambda a: a + 0.5), "N contains non-integer values"),
        (changed("N", lambda a: a.sum()), r"N has shape \(\)"),
        (changed("Z", lambda a: a + 0.5), "Z contains non-integer values"),
        (changed("Z", lambda a: a.astype(str)), "Z has dtype <U.*, which is not numeric"),
        (changed("E", lambda a: a.astype(object)), "not a readable npz file"),
        (changed("R", lambda a: with_nan(a, 10)), r"positions contain NaN.*\[1\]"),
        (changed("F", lambda a: with_nan(a, 10)), r"forces contain NaN.*\[1\]"),
        (changed("E", lambda a: with_nan(a, 3)), r"energies contain NaN.*\[3\]"),
        (changed("R", lambda a: a / 10), "two atoms of frame 0"),
        (changed("E", lambda a: a * ase.units.Hartree), "plausible|electrons"),
        (changed("F", lambda a: a * 51.4), "plausible"),
    ],
    ids=[
        "no F", "positions", "three axes", "numbers", "components", "energies", "sum of N",
        "N zero", "empty", "half N", "scalar N", "half Z", "text", "objects", "nan positions",
        "nan forces", "nan energy", "nanometres", "energies in eV", "forces in eV/Å",
    ],
)  # fmt: skip
def test_unusable_arrays(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as refused:
        read_chignolin(write_npz(tmp_path / "bad.npz", **arrays))
    assert "bad.npz" in str(refused.value)


def test_units_need_not_be_checked(tmp_path):
    path = write_npz(tmp_path / "c.npz", **changed("F", lambda a: a * 51.4))
    assert len(read_chignolin(path, check_units=False)) == 30


def test_damaged_files(tmp_path):
    with pytest.raises(DataError, match="none.npz does not exist"):
        read_chignolin(tmp_path / "none.npz")
    path = write_npz(tmp_path / "c.npz", **chignolin_arrays())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="not a readable npz file.*truncated"):
        read_chignolin(path)

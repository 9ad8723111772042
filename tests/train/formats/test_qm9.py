import io
import tarfile

import numpy as np
import pytest

from train.data.frames import DataError
from train.formats.qm9 import N_UNCHARACTERISED, TARGETS, pack_qm9, read_qm9

from ...support import shared_data, write_npz

HARTREE = 27.211386


def qm9_arrays():
    """Water and methane; property k of molecule m is (k + 1) / 10 + m."""
    values = {name: np.array([0.1, 1.1]) + 0.1 * k for k, name in enumerate(TARGETS)}
    positions = [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48], [0, 0, 0]]
    positions += [[0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [0.63, -0.63, -0.63]]
    positions += [[-0.63, 0.63, -0.63]]
    return {
        "N": np.array([3, 5], np.uint8),
        "Z": np.array([8, 1, 1, 6, 1, 1, 1, 1], np.uint8),
        "R": np.array(positions, np.float32),
        **values,
    }


def changed(name, change):
    arrays = qm9_arrays()
    arrays[name] = change(arrays[name])
    return arrays


@pytest.mark.parametrize("target", TARGETS)
def test_targets(tmp_path, target):
    frames = read_qm9(write_npz(tmp_path / "q.npz", **qm9_arrays()), target)
    in_hartree = target in ("homo", "lumo", "gap", "zpve", "U0", "U", "H", "G")
    expected = qm9_arrays()[target] * (HARTREE if in_hartree else 1.0)
    np.testing.assert_allclose(frames.energies, expected, rtol=1e-7)
    assert (TARGETS[target].unit == "eV") == in_hartree
    assert frames.forces is None
    assert frames.starts.tolist() == [0, 3, 8]
    assert frames.positions.dtype == np.float64


def test_there_are_twelve_targets():
    assert " ".join(TARGETS) == "mu alpha homo lumo gap r2 zpve U0 U H G Cv"


def test_genuine_file():
    path = shared_data("qm9/qm9_130831.npz")
    frames = read_qm9(path, "gap")
    assert len(frames) == 130831
    assert len(frames.numbers) == 2359210
    assert frames.energies[0] == pytest.approx(0.5048 * HARTREE, abs=1e-4)  # methane
    assert set(np.unique(frames.numbers)) == {1, 6, 7, 8, 9}
    assert frames.energies.mean() == pytest.approx(6.86, abs=0.02)  # as everybody finds


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({k: v for k, v in qm9_arrays().items() if k != "U0"}, "lacks the array.*U0; it contains"),
        (changed("N", lambda a: a[:1]), "inconsistent shapes"),
        (changed("N", lambda a: a[::-1] + 1), r"Z has shape \(8,\), not \(10,\)"),
        (changed("U0", lambda a: a[:1]), r"U0 has shape \(1,\), not \(2,\)"),
        (changed("R", lambda a: a.ravel()), r"R has shape \(24,\), not \(8, 3\)"),
        (changed("U0", lambda a: a * np.nan), r"energies contain NaN.*\[0, 1\]"),
        (changed("R", lambda a: np.full_like(a, np.inf)), "positions contain NaN or infinity"),
        (changed("Z", lambda a: a * 0), "are not valid atomic numbers"),
        (changed("R", lambda a: a / 10), "two atoms of frame 0"),
    ],
    ids=["no target", "frames", "sum of N", "values", "flat", "nan", "infinity", "zero", "nm"],
)
def test_unusable_arrays(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        read_qm9(write_npz(tmp_path / "bad.npz", **arrays))


def test_unknown_target(tmp_path):
    with pytest.raises(DataError, match="target is 'u0'; choose one of mu, alpha.*Cv"):
        read_qm9(tmp_path / "none.npz", "u0")


def test_damaged_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_qm9(tmp_path / "none.npz")
    path = write_npz(tmp_path / "q.npz", **qm9_arrays())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a readable npz file"):
        read_qm9(path)


WATER = """3
gdb 3\t799.58812\t437.90386\t282.94545\t1.8511\t6.31\t-0.2928\t0.0687\t0.3615\t19.0002\t0.021375\t\
-76.404702\t-76.401867\t-76.400922\t-76.422349\t6.002\t
O\t-0.0343604951\t 0.9775395708\t 0.0076015923\t-0.589706
H\t 0.0647664923\t 6.2*^-6\t 0.0015346341\t 0.294853
H\t 0.8717903737\t 1.3007924048\t 0.0006931336\t 0.294853
1671.4222\t3803.6305\t3907.698
O\tO\t
InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2
"""


def original_files(folder, n_excluded=N_UNCHARACTERISED):
    """The archive with water (3) and a copy of it (1) that is to be left out, (2) behind them."""
    with tarfile.open(folder / "q.tar.bz2", "w:bz2") as archive:
        for index in (3, 1, 2):
            content = WATER.replace("gdb 3", f"gdb {index}").encode()
            member = tarfile.TarInfo(f"dsgdb9nsd_{index:06d}.xyz")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    rows = [f"{1 if k == 0 else 5000 + k}  C#CC1CN1  0.1 0.2" for k in range(n_excluded)]
    lines = [*["heading 1"] * 9, *rows, "3054 molecules"]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder / "q.tar.bz2", folder / "list.txt"


def test_original_files(tmp_path):
    pack_qm9(*original_files(tmp_path), tmp_path / "q.npz")
    frames = read_qm9(tmp_path / "q.npz")
    assert len(frames) == 2
    assert frames.numbers.tolist() == [8, 1, 1] * 2
    assert frames.positions[1].tolist() == [0.0647664923, 6.2e-6, 0.0015346341]
    assert frames.energies[0] == pytest.approx(-76.404702 * HARTREE, abs=1e-4)
    assert read_qm9(tmp_path / "q.npz", "Cv").energies.tolist() == [6.002] * 2
    assert np.load(tmp_path / "q.npz")["id"].tolist() == [2, 3]


def test_damaged_original_files(tmp_path):
    archive, listed = original_files(tmp_path, n_excluded=3000)
    with pytest.raises(DataError, match="contains 3000 indices, not 3054"):
        pack_qm9(archive, listed, tmp_path / "q.npz")
    archive, listed = original_files(tmp_path)
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(DataError, match="not a readable archive of QM9"):
        pack_qm9(archive, listed, tmp_path / "q.npz")
    assert not (tmp_path / "q.npz").exists()

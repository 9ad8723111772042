import json
import sys
from pathlib import Path

import pytest

from benchmarks import peer_training

FRAMES = Path(__file__).parents[2] / "md_examples" / "ethanol_gfn2.h5"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["peer_training", *map(str, words)])
    peer_training.main()


def test_trains_for_the_time_and_draws(tmp_path, monkeypatch):
    output, picture = tmp_path / "errors.json", tmp_path / "errors.png"
    words = ["lkm-calc", "--bin", Path(sys.executable).parent, "--minutes", 0.05]
    words += ["--train", FRAMES, "--test", FRAMES, "--n-train", 20, "--work", tmp_path]
    run(monkeypatch, *words, "--output", output)
    run(monkeypatch, *words, "--output", output, "--seed", 1)
    rows = json.loads(output.read_text())
    expected = {"package": "lkm-calc", "frames": FRAMES.stem, "n_train": 20, "minutes": 0.05}
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        assert row.items() >= expected.items()
        assert 10 < row["force_mae"] < row["force_rmse"] < 500
    with pytest.raises(SystemExit, match="Delete it to train again"):
        run(monkeypatch, *words)
    run(monkeypatch, output, "--plot", picture)
    assert picture.stat().st_size > 10_000


TRAIN = """#!{python}
import pathlib, sys
given = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
assert given["extra"] == "7"
for epoch in range(int(given["max_num_epochs"])):
    print(f"2026-01-01 10:00:{{2 * epoch:02d}}.000 INFO: Epoch {{epoch}}: loss")
pathlib.Path(given["name"] + ".model").touch()
"""
PREDICT = """#!{python}
import sys
from ase.io import read, write
given = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
assert given["model"] == "model.model" and "extra" not in given
images = read(given["configs"], ":")
for atoms in images:
    atoms.info["MACE_energy"] = atoms.info["REF_energy"] + 0.003
    atoms.arrays["MACE_forces"] = atoms.arrays["REF_forces"] + 0.002
write(given["output"], images, format="extxyz")
"""


def test_commands_of_mace(tmp_path, monkeypatch):
    """Stand-ins: two seconds per epoch, and forces that are wrong by 2 meV/Å."""
    for name, script in (("mace_run_train", TRAIN), ("mace_eval_configs", PREDICT)):
        (tmp_path / name).write_text(script.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    words = ["MACE", "--bin", tmp_path, "--minutes", 0.5, "--arguments=--extra=7"]
    words += ["--train", FRAMES, "--test", FRAMES, "--work", tmp_path]
    run(monkeypatch, *words, "--output", tmp_path / "errors.json")
    (row,) = json.loads((tmp_path / "errors.json").read_text())
    assert row["force_mae"] == pytest.approx(2, rel=1e-3)
    assert row["energy_mae"] == pytest.approx(3, rel=1e-3)
    log = next(tmp_path.glob("*/mace_run_train.log")).read_text()
    assert log.count("Epoch") == 15  # 30 seconds
    with pytest.raises(SystemExit, match="--n-train is 9999"):
        run(monkeypatch, *words, "--n-train", 9999)


@pytest.mark.parametrize(("minutes", "text"), [(0.5, "00:00:00:30"), (61, "00:01:01:00")])
def test_time_limits_of_lightning(minutes, text):
    assert peer_training.max_time(minutes) == text


def test_a_command_that_fails_is_reported(tmp_path, monkeypatch):
    words = ["lkm-calc", "--bin", Path(sys.executable).parent, "--arguments=--nonsense"]
    words += ["--train", FRAMES, "--test", FRAMES, "--work", tmp_path]
    with pytest.raises(SystemExit, match="lkm-train failed(.|\n)*nonsense"):
        run(monkeypatch, *words)

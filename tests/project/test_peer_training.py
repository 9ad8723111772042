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
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        assert (row["package"], row["n_train"], row["minutes"]) == ("lkm-calc", 20, 0.05)
        assert 10 < row["force_mae"] < row["force_rmse"] < 500
    with pytest.raises(SystemExit, match="Delete it to train again"):
        run(monkeypatch, *words)
    run(monkeypatch, output, "--plot", picture)
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(("minutes", "text"), [(0.5, "00:00:00:30"), (61, "00:01:01:00")])
def test_time_limits_of_lightning(minutes, text):
    assert peer_training.max_time(minutes) == text


def test_a_command_that_fails_is_reported(tmp_path, monkeypatch):
    words = ["lkm-calc", "--bin", Path(sys.executable).parent, "--arguments=--nonsense"]
    words += ["--train", FRAMES, "--test", FRAMES, "--work", tmp_path]
    with pytest.raises(SystemExit, match="lkm-train failed(.|\n)*nonsense"):
        run(monkeypatch, *words)

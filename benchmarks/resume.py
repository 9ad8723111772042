"""Kill a training at random moments with SIGKILL and continue it until it is finished.

    python -m benchmarks.resume rmd17_ethanol_train_01.npz --kills 20

The weights, the training state and the logged losses must be those of an uninterrupted run, bit for
bit. ACE with the defaults but for the size of the set, ``--epochs``, and a saved state every epoch.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from lkm_calc import load_model

TIMES = ("seconds", "training_seconds")
"""Entries that differ between runs."""


def command(data: Path, directory: Path, epochs: int) -> list[str]:
    """Return the command of the training."""
    options = {
        "--data.train": data,
        "--data.n_train": 100,
        "--data.n_validation": 20,
        "--optimiser.epochs": epochs,
        "--run.directory": directory,
        "--run.checkpoint_every": 1,
        "--run.device": "cpu",
    }
    words = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "-m", "train", "fit", "own", *words]


def rows(directory: Path) -> list[dict[str, float]]:
    """Return the logged rows without times."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def same(one: object, other: object) -> bool:
    """Return whether two training states are equal bit for bit, apart from times."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            k in TIMES or same(v, other[k]) for k, v in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def main() -> None:
    """Train once without and once with interruptions, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="rMD17 file")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        began = time.perf_counter()
        subprocess.run(command(options.data, whole, options.epochs), check=True)
        seconds = time.perf_counter() - began
        kills = 0
        while kills < options.kills:
            process = subprocess.Popen(command(options.data, parts, options.epochs))
            try:
                # Also while it starts, and later as the run proceeds.
                process.wait(moments.uniform(0.0, 0.15 * seconds))
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        process = subprocess.run(command(options.data, parts, options.epochs), check=True)
        states = [torch.load(p / "state.pt", weights_only=True) for p in (whole, parts)]
        models = [load_model(p / "model.safetensors").state_dict() for p in (whole, parts)]
        print(f"{kills} kills, {states[0]['counters']['step']} steps")
        for name, equal in (
            ("training state", same(*states)),
            ("weights of the model", same(*models)),
            ("logged errors", rows(whole) == rows(parts)),
        ):
            print(f"{name}: {'equal bit for bit' if equal else 'DIFFERENT'}")


if __name__ == "__main__":
    main()

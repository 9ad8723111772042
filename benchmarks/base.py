"""A base for finetuning: one model of several molecules.

    python -m benchmarks.base rmd17_*_train_01.npz --run runs/rmd17-base
    python -m benchmarks.base rmd17_*_train_01.npz --exclude ethanol --run runs/base-without-ethanol

Joins the files and trains ACE on all frames, with the defaults but for the number of epochs; an
interrupted training continues. How many frames a base saves is measured with
``python -m benchmarks.pretraining --base``.
"""

import argparse
from pathlib import Path

import torch

from train.config import config_from_table
from train.data import Frames
from train.fit import fit
from train.formats import read_frames, write_hdf5

EPOCHS = 15
"""Passes over all frames."""
VALIDATION = 20
"""Validation frames per file, on average."""


def joined(files: list[Path], excluded: str, path: Path) -> int:
    """Write the frames of all files but those with ``excluded`` in their names to one file.

    Returns:
        The number of files.
    """
    used = [file for file in files if not excluded or excluded not in file.name]
    if excluded and len(used) == len(files):
        raise SystemExit(f"No file has {excluded!r} in its name.")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_hdf5(Frames.joined([read_frames(file) for file in used]), path)
    return len(used)


def main() -> None:
    """Join and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="data files, one per molecule")
    parser.add_argument("--exclude", default="", metavar="NAME", help="leave out files named so")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = options.run / f"{options.run.name}.h5"
    count = joined(options.files, options.exclude, data)
    config = config_from_table(
        {
            "data": {"train": str(data), "n_validation": VALIDATION * count},
            "optimiser": {"epochs": options.epochs},
            "run": {"directory": str(options.run), "checkpoint_every": 1},
        }
    )
    if fit(config) is None:
        raise SystemExit("Stopped. Run the same command to continue.")


if __name__ == "__main__":
    main()

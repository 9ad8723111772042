"""A base for finetuning: one model of several molecules, in two stages.

    python -m benchmarks.base runs/cheap/frames.h5 --run runs/first-stage
    python -m benchmarks.base rmd17_*_train_01.npz --test rmd17_*_test_01.npz \
        --finetune runs/first-stage/model.safetensors --run runs/rmd17-base
    python -m benchmarks.base rmd17_*_train_01.npz --exclude ethanol \
        --finetune runs/first-stage/model.safetensors --run runs/base-without-ethanol

The first stage trains on cheap frames of many molecules, see ``benchmarks.cheap_frames``. Joins the
files and trains ACE on all frames, with the defaults but for the number of epochs; an interrupted
training continues. How many frames a base saves is measured with
``python -m benchmarks.pretraining --base``.
"""

import argparse
from pathlib import Path

import torch

from train.config import ConfigError, config_from_table
from train.data import DataError, Frames
from train.fit import fit
from train.formats import read_frames, write_hdf5

EPOCHS = 15
"""Passes over all frames."""
VALIDATION = 20
"""Validation frames per file, on average."""


def join(files: list[Path], path: Path) -> None:
    """Write the frames of several files to one file; a run with other frames is not continued."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_hdf5(Frames.joined([read_frames(file) for file in files]), path)


def without(name: str | None, files: list[Path]) -> list[Path]:
    """Return the files whose names do not have a part, parts being separated by underscores."""
    return [file for file in files if name not in file.stem.split("_")]


def main() -> None:
    """Join and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="data files")
    parser.add_argument(
        "--exclude", metavar="NAME", help="leave out files whose name has it between _"
    )
    parser.add_argument("--test", nargs="*", type=Path, default=[], help="files with test frames")
    parser.add_argument("--finetune", metavar="MODEL", default="", help="start from this model")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    used, tests = (without(options.exclude, files) for files in (options.files, options.test))
    if options.exclude and len(used) == len(options.files):
        parser.error(f"no file has {options.exclude!r} between underscores in its name")
    if not used:
        parser.error(f"--exclude {options.exclude} leaves no file")
    try:
        data = {"train": options.run / f"{options.run.name}.h5"}
        join(used, data["train"])
        if tests:
            data["test"] = options.run / f"{options.run.name}-test.h5"
            join(tests, data["test"])
        config = config_from_table(
            {
                "data": {
                    **{name: str(path) for name, path in data.items()},
                    "n_validation": VALIDATION * len(used),
                },
                "optimiser": {"epochs": options.epochs},
                "run": {
                    "directory": str(options.run),
                    "finetune": options.finetune,
                    "checkpoint_every": 1,
                },
            }
        )
        finished = fit(config)
    except (ConfigError, DataError) as error:
        parser.error(str(error))
    if finished is None:
        raise SystemExit("Stopped. Run the same command to continue.")


if __name__ == "__main__":
    main()

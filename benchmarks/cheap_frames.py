"""Cheap frames of many molecules: dynamics with GFN2-xTB that start from molecules of QM9.

    python -m benchmarks.cheap_frames qm9_130831.npz --exclude rmd17_*_train_01.npz \
        --output runs/cheap/frames.h5

Writes frames of molecules of H, C, N and O with up to 8 heavy atoms, chosen at random. Molecules
with the same formula as a frame of ``--exclude`` are not used, so that no molecule on which a
base is tested has been seen in the first stage of its training (:mod:`benchmarks.base`).
Continues where it was interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lkm_calc.runtime import stop_signals
from train.config import ConfigError, PretrainingConfig
from train.data import DataError, Frames
from train.formats import read_frames, read_qm9
from train.sampling import sample_frames

ELEMENTS = (1, 6, 7, 8)
"""Atomic numbers of which molecules are made."""
HEAVY = 8
"""Maximum number of atoms other than hydrogen."""


def formula(frames: Frames, frame: int) -> tuple[int, ...]:
    """Return the sorted atomic numbers of a frame."""
    numbers = frames.numbers[frames.starts[frame] : frames.starts[frame + 1]]
    return tuple(sorted(numbers.tolist()))


def molecules(qm9: Frames, excluded: Sequence[Frames]) -> Frames:
    """Return the molecules of the elements and the size that have no excluded formula."""
    known = {formula(frames, frame) for frames in excluded for frame in range(len(frames))}
    kept = []
    for frame in range(len(qm9)):
        found = formula(qm9, frame)
        small = sum(z > 1 for z in found) <= HEAVY
        if small and set(found) <= set(ELEMENTS) and found not in known:
            kept.append(frame)
    if not kept:
        raise DataError(
            f"No molecule of H, C, N and O with up to {HEAVY} heavy atoms is left. Use another "
            "file, or fewer files in --exclude."
        )
    return qm9.select(np.array(kept))


def main() -> None:
    """Sample."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("qm9", type=Path, help="npz file of QM9")
    parser.add_argument("--exclude", nargs="+", type=Path, default=[], help="data files")
    parser.add_argument("--calculator", default="gfn2-xtb")
    parser.add_argument("--molecules", type=int, default=600)
    parser.add_argument("--frames", type=int, default=12000)
    parser.add_argument("--temperature", type=float, default=700.0, help="in K")
    parser.add_argument("--seed", type=int, default=0, help="of the molecules and the dynamics")
    parser.add_argument("--output", type=Path, required=True, help="HDF5 file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.molecules < 1 or options.frames < options.molecules:
        parser.error("--molecules must be at least 1, and --frames at least --molecules")
    config = PretrainingConfig(options.calculator, options.frames, options.temperature)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        starts = molecules(read_qm9(options.qm9), [read_frames(path) for path in options.exclude])
        with stop_signals() as stopped:
            finished = sample_frames(
                config,
                starts,
                options.output,
                options.seed,
                stopped,
                trajectories=options.molecules,
            )
    except (ConfigError, DataError) as error:
        parser.error(str(error))
    if not finished:
        raise SystemExit("Stopped. Run the same command to continue.")


if __name__ == "__main__":
    main()

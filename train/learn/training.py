"""The model of a round: training, calibration of its guard, and errors on new frames."""

import dataclasses
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lkm_calc import load_model

from ..config import FINETUNING_RATE, Config, PretrainingConfig
from ..data import Frames, GraphFrames
from ..fit import fit
from ..formats import write_hdf5
from ..report import calibrate_file, predict

WRONG = 0.05
"""A model is wrong on a frame whose force MAE is above this fraction of its mean absolute force."""


class Comparison(NamedTuple):
    """A model compared with labelled frames on which it was not trained."""

    force_mae: float
    """In meV/Å."""
    right: NDArray[np.bool_]
    """(frames) whether its forces are right within :data:`WRONG`."""


def trained_model(
    config: Config, place: Path, start: Path | None, frames: Frames, held_out: NDArray[np.bool_]
) -> Path | None:
    """Train on the frames that are not held out, and return the model, or None if stopped.

    Args:
        config: Options of the training; files and directories are set here.
        place: Folder of the round.
        start: Model to start from, if there is one.
        frames: All frames.
        held_out: (frames) whether a frame is a validation frame.
    """
    for name, rows in (("train", ~held_out), ("validation", held_out)):
        if not (place / f"{name}.h5").exists():
            write_hdf5(frames.select(np.flatnonzero(rows)), place / f"{name}.h5")
    return fit(_training(config, place, start))


def _training(config: Config, place: Path, model: Path | None) -> Config:
    """Return the configuration of the training of a round."""
    data = dataclasses.replace(
        config.data,
        train=str(place / "train.h5"),
        validation=str(place / "validation.h5"),
        test="",
        n_train="auto",
        n_validation="auto",
    )
    run = dataclasses.replace(config.run, directory=str(place / "training"))
    config = dataclasses.replace(config, data=data, run=run)
    if model is None:
        return config
    return dataclasses.replace(
        config,
        run=dataclasses.replace(run, finetune=str(model)),
        optimiser=dataclasses.replace(
            config.optimiser, learning_rate=min(config.optimiser.learning_rate, FINETUNING_RATE)
        ),
        pretraining=PretrainingConfig(),
    )


def calibrated_copy(
    trained: Path, path: Path, frames: Frames, held_out: NDArray[np.bool_], batch_size: int
) -> Comparison:
    """Copy a model, calibrate its guard, and return its errors on the held-out frames.

    The guard is calibrated on those on which the model is right: where it is wrong, a structure
    stays outside the training distribution. If it is right on none, all are used.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(trained, path)
    held = frames.select(np.flatnonzero(held_out))
    found = compared(path, held, batch_size)
    chosen = held.select(np.flatnonzero(found.right)) if found.right.any() else held
    model = load_model(path)
    calibrate_file(
        path,
        GraphFrames(chosen, model, model.device),
        GraphFrames(frames.select(np.flatnonzero(~held_out)), model, model.device),
        batch_size,
    )
    return found


def compared(path: Path, frames: Frames, batch_size: int) -> Comparison:
    """Compare the forces of a model with those of frames on which it was not trained."""
    model = load_model(path)
    forces = predict(model, GraphFrames(frames, model, model.device), batch_size).forces
    assert forces is not None
    errors, sizes = (
        torch.stack([part.abs().mean() for part in values.split(frames.sizes.tolist())])
        for values in (forces.difference, forces.labels)
    )
    return Comparison(
        1000 * forces.difference.abs().mean().item(), (errors <= WRONG * sizes).numpy()
    )

"""The first stage of a run: frames of a cheap method, and the configuration that trains on them."""

import dataclasses

import torch

from lkm_calc.files import expanded
from lkm_calc.runtime import stop_signals

from ..config import Config, ConfigError, DataConfig, PretrainingConfig
from ..sampling import sample_frames
from .parallel import Workers
from .sets import read_sets

FOLDER = "pretraining"
"""Folder of the first stage in that of the run."""
VALIDATIONS = 5
"""Number of validations during the first stage."""


def pretraining_run(config: Config, device: torch.device, team: Workers) -> Config | None:
    """Sample the frames of the first stage and return its configuration, or None if stopped.

    Dynamics start from the training frames only. With several processes, the first one samples.

    Raises:
        ConfigError: The labels are not energies, or as for :func:`train.sampling.sample_frames`.
        DataError: As for :func:`train.sampling.sample_frames`.
    """
    options = config.pretraining
    directory = expanded(config.run.directory) / FOLDER
    path = directory / "frames.h5"
    done = True
    if team.first:
        frames = read_sets(config).train
        if frames.energy_unit != "eV":
            raise ConfigError(
                f"pretraining.calculator is set, but {config.data.train} contains a property in "
                f"{frames.energy_unit}, not energies. Remove pretraining.calculator."
            )
        with stop_signals() as stopped:
            done = sample_frames(
                options,
                frames,
                path,
                config.run.seed,
                stopped,
                stress=config.loss.stress > 0,
            )
    if not team.from_first(float(done), device):
        return None
    return dataclasses.replace(
        config,
        data=DataConfig(train=str(path)),
        loss=dataclasses.replace(config.loss, config_type_weights={}),
        optimiser=dataclasses.replace(
            config.optimiser,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            restart_epoch=0,
        ),
        run=dataclasses.replace(
            config.run,
            directory=str(directory),
            validate_every=max(1, options.epochs // VALIDATIONS),
            tensorboard=False,
        ),
        pretraining=PretrainingConfig(),
    )

"""Checks of the values of options."""

import math
from collections.abc import Mapping
from typing import Any

from lkm_calc import MODELS

from .options import Config, ConfigError

FEWEST_FRAMES = 20
"""Minimum number of frames for pretraining, validation frames among them."""


def _check_type_weights(weights: Mapping[str, Any]) -> None:
    """Raise a ConfigError for weights that are not numbers, negative or not finite."""
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise ConfigError(
                f"loss.config_type_weights.{name} is {weight!r}; it must be a finite, non-negative "
                "number."
            )


def check_config(config: Config) -> None:
    """Raise a ConfigError for invalid values."""
    _check_type_weights(config.loss.config_type_weights)
    o, run = config.optimiser, config.run
    positive = {
        "data.n_train": 1 if config.data.n_train == "auto" else config.data.n_train,
        "data.n_validation": 1 if config.data.n_validation == "auto" else config.data.n_validation,
        "optimiser.epochs": o.epochs,
        "optimiser.batch_size": o.batch_size,
        "optimiser.accumulate": o.accumulate,
        "optimiser.plateau_patience": o.plateau_patience,
        "optimiser.swa_rate": o.swa_rate,
        "optimiser.learning_rate": o.learning_rate,
        "optimiser.clip_norm": o.clip_norm,
        "pretraining.frames": config.pretraining.frames,
        "pretraining.temperature": config.pretraining.temperature,
        "pretraining.epochs": config.pretraining.epochs,
        "pretraining.learning_rate": config.pretraining.learning_rate,
        "loss.huber_delta": config.loss.huber_delta,
        "run.validate_every": run.validate_every,
        "run.checkpoint_every": run.checkpoint_every,
        "run.eval_batch_size": run.eval_batch_size,
    }
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be positive and finite.")
    not_negative = {
        "data.n_test": config.data.n_test,
        "loss.energy": config.loss.energy,
        "loss.forces": config.loss.forces,
        "loss.stress": config.loss.stress,
        "loss.gamma": 0.0 if config.loss.gamma == "auto" else config.loss.gamma,
        "loss.gamma_fraction": config.loss.gamma_fraction,
        "loss.gamma_warmup_steps": config.loss.gamma_warmup_steps,
        "optimiser.early_stopping": o.early_stopping,
        "optimiser.final_fraction": o.final_fraction,
        "optimiser.restart_epoch": o.restart_epoch,
        "optimiser.warmup_steps": o.warmup_steps,
        "optimiser.weight_decay": o.weight_decay,
        "run.seed": run.seed,
    }
    for name, value in not_negative.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be non-negative and finite.")
    for name in ("ema_decay", "swa_fraction", "momentum"):
        if not 0 <= getattr(o, name) < 1:
            raise ConfigError(f"optimiser.{name} is {getattr(o, name)}; it must be in [0, 1).")
    if not 0 < o.plateau_factor < 1:
        raise ConfigError(
            f"optimiser.plateau_factor is {o.plateau_factor}; it must be between 0 and 1."
        )
    if o.restart_epoch >= o.epochs:
        raise ConfigError(
            f"optimiser.restart_epoch is {o.restart_epoch}; it must be less than optimiser.epochs, "
            f"which is {o.epochs}."
        )
    if o.restart_epoch and o.swa_fraction:
        raise ConfigError(
            "optimiser.restart_epoch and optimiser.swa_fraction cannot be combined: set one to 0."
        )
    for name, start in (
        ("run.finetune", run.finetune),
        ("pretraining.calculator", config.pretraining.calculator),
    ):
        if config.loss.raw_energies and start:
            raise ConfigError(
                f"loss.raw_energies and {name} cannot be combined, because the model to start from "
                "has reference energies. Leave out one of them."
            )
    if config.pretraining.calculator and config.pretraining.frames < FEWEST_FRAMES:
        raise ConfigError(
            f"pretraining.frames is {config.pretraining.frames}; it must be at least "
            f"{FEWEST_FRAMES}."
        )
    if config.loss.energy == config.loss.forces == config.loss.stress == 0:
        raise ConfigError(
            "loss.energy, loss.forces and loss.stress are all 0. Set at least one of them."
        )
    if config.loss.lkm_teacher == "error" and config.loss.energy == 0:
        raise ConfigError(
            'loss.lkm_teacher is "error" but loss.energy is 0; this teacher needs fitted energies. '
            "Set loss.energy, or choose another teacher."
        )
    for name in ("test", "validation"):
        if config.data.n_test and getattr(config.data, name):
            raise ConfigError(
                f"data.n_test and data.{name} cannot be combined: data.n_test draws test frames "
                "from the file of all frames, data.train. Leave out one of them, or name a file "
                "with test frames as data.test."
            )
    if not config.data.train:
        raise ConfigError("data.train is missing: set it to the file with the training frames.")
    if config.model.name not in MODELS:
        raise ConfigError(
            f"model.name is {config.model.name!r}; choose one of {', '.join(MODELS)}. For a custom "
            "architecture, install its package or pass its module with --import."
        )

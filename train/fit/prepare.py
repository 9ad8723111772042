"""The model that a run starts with, and whether it and the labels suit each other."""

import dataclasses
import logging

import numpy as np
import torch

from lkm_calc import EnergyModel, build_model, load_model
from lkm_calc.models import ArchitectureError
from lkm_calc.potential import ModelFileError
from lkm_calc.runtime import float32_by_default
from lkm_calc.units import KCAL_PER_MOL

from ..config import Config, ConfigError
from ..data import DataError, Frames, GraphFrames, fit_reference_energies
from ..report import predict

logger = logging.getLogger("lkm_train")


def check_elements(model: EnergyModel, frames: Frames, source: str) -> None:
    """Raise a DataError if the model was not trained on an element of the frames."""
    try:
        model.check_elements(np.unique(frames.numbers))
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def check_labels(frames: Frames, config: Config) -> None:
    """Raise a ConfigError if the loss leaves nothing to learn from these labels.

    Warns where it weighs labels that there are none of.
    """
    loss = config.loss
    weights = {"energy": loss.energy}
    if frames.has_forces.any():
        weights["forces"] = loss.forces
    if frames.usable_stress is not None:
        weights["stress"] = loss.stress
    for name in ("forces", "stress"):
        if name not in weights and getattr(loss, name) > 0:
            logger.warning(
                "%s has no labels of %s: loss.%s does nothing.", config.data.train, name, name
            )
    if not any(weights.values()):
        raise ConfigError(
            f"{config.data.train} has labels of {', '.join(weights)}, all of weight 0 in the loss. "
            "Give one a positive weight."
        )


def prepare_model(config: Config, frames: Frames) -> EnergyModel:
    """Build the model, or take the one to finetune, and fit its energies to the frames."""
    if config.run.finetune:
        return _finetuned(config, frames)
    try:
        with (
            float32_by_default(),
            torch.random.fork_rng(devices=[]),
        ):  # the caller's generator stays where it is
            torch.default_generator.manual_seed(config.run.seed)
            model = build_model(config.model.name, **config.model.hypers)
    except ArchitectureError as error:
        raise ConfigError(f"model.name: {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.hypers cannot be used: {error}") from error
    model.to(getattr(torch, config.run.dtype))
    if config.loss.raw_energies:
        elements = np.unique(frames.numbers).tolist()
        model.calibrate(KCAL_PER_MOL, dict.fromkeys(elements, 0.0), elements)
        return model
    reference = fit_reference_energies(frames)
    logger.info("%s", reference)
    energies = dict(zip(reference.elements, reference.energies, strict=True))
    forces = frames.labelled_forces
    if forces is not None:
        scale = float(np.sqrt(np.mean(forces**2)))
    else:
        scale = float(np.std(reference.residuals / np.sqrt(frames.sizes)))
    model.calibrate(scale or 1.0, energies, reference.elements)
    return model


def _finetuned(config: Config, frames: Frames) -> EnergyModel:
    """Return a trained model whose reference energies fit the frames as well as they can.

    Another method's total energies differ by amounts an element; least squares on what the model
    leaves of the new energies finds them.
    """
    try:
        model = load_model(config.run.finetune, dtype=getattr(torch, config.run.dtype))
    except ModelFileError as error:
        raise ConfigError(f"run.finetune: {error}") from error
    model.requires_grad_(True).train()
    check_elements(model, frames, config.data.train)
    data = GraphFrames(frames, model, model.device)
    energies = predict(model, data, config.run.eval_batch_size).energies
    left = dataclasses.replace(frames, energies=-energies.difference.numpy())
    reference = fit_reference_energies(left)
    logger.info("finetuning %s: %s", config.run.finetune, reference)
    with torch.no_grad():
        for number, energy in zip(reference.elements, reference.energies, strict=True):
            model.reference_energies[number] += energy
    return model

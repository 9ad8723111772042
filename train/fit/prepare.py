"""Preparation of the initial model of a run, and checks of elements and labels."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from ase.data import chemical_symbols

from lkm_calc import EnergyModel, build_model, load_model
from lkm_calc.models import ArchitectureError
from lkm_calc.potential import ModelFileError
from lkm_calc.runtime import float32_by_default
from lkm_calc.units import KCAL_PER_MOL

from ..config import Config, ConfigError
from ..data import DataError, Frames, GraphFrames, fit_reference_energies
from ..report import predict

logger = logging.getLogger("lkm_train")

MAX_SHIFT = 0.5
"""Maximum difference in eV of the energies of elements for which frames are considered to have the
same level of theory as the finetuned model."""


def check_elements(model: EnergyModel, frames: Frames, source: str) -> None:
    """Raise a DataError if the model was not trained on an element of the frames."""
    try:
        model.check_elements(np.unique(frames.numbers))
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def check_labels(frames: Frames, config: Config) -> None:
    """Raise a ConfigError if all labels have zero weight in the loss.

    Warns about positive weights of labels that the frames do not have.
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
                "%s has no %s labels: loss.%s has no effect.", config.data.train, name, name
            )
    if not any(weights.values()):
        raise ConfigError(
            f"The labels of {config.data.train} ({', '.join(weights)}) all have weight 0 in the "
            "loss. Set at least one weight to a positive value."
        )


def prepare_model(
    config: Config,
    frames: Frames,
    isolated: Mapping[int, float] = MappingProxyType({}),
    start: Path | None = None,
) -> EnergyModel:
    """Build the model, or load the one to finetune, and fit its reference energies to the frames.

    Args:
        config: The run.
        frames: Training frames without isolated atoms.
        isolated: Energies in eV of isolated atoms by atomic number.
        start: Pretrained model to finetune instead of ``run.finetune``.
    """
    isolated = _known(isolated, frames)
    if start or config.run.finetune:
        return _finetuned(config, frames, isolated, start or config.run.finetune)
    try:
        with (
            float32_by_default(),
            torch.random.fork_rng(devices=[]),
        ):  # does not change the global random state
            torch.default_generator.manual_seed(config.run.seed)
            model = build_model(config.model.name, **config.model.hypers)
    except ArchitectureError as error:
        raise ConfigError(f"model.name: {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.hypers cannot be used: {error}") from error
    model.to(getattr(torch, config.run.dtype))
    if config.loss.raw_energies:
        if isolated:
            raise ConfigError(
                f"loss.raw_energies is true, but {config.data.train} has isolated atoms, which fix "
                "reference energies. Remove them, or set loss.raw_energies = false."
            )
        elements = np.unique(frames.numbers).tolist()
        model.calibrate(KCAL_PER_MOL, dict.fromkeys(elements, 0.0), elements)
        return model
    reference = fit_reference_energies(frames, isolated)
    logger.info("%s", reference)
    energies = dict(zip(reference.elements, reference.energies, strict=True))
    forces = frames.labelled_forces
    if forces is not None:
        scale = float(np.sqrt(np.mean(forces**2)))
    else:
        scale = float(np.std(reference.residuals / np.sqrt(frames.sizes)))
    _calibrate(model, scale or 1.0, energies, isolated)
    return model


def _known(isolated: Mapping[int, float], frames: Frames) -> dict[int, float]:
    """Return the energies of isolated atoms of elements that occur in the frames."""
    elements = np.unique(frames.numbers).tolist()
    strange = [chemical_symbols[z] for z in isolated if z not in elements]
    if strange:
        logger.warning(
            "%s occurs only as isolated atoms in the training frames: the model does not learn %s.",
            ", ".join(strange),
            "it" if len(strange) == 1 else "them",
        )
    return {z: energy for z, energy in isolated.items() if z in elements}


def _calibrate(
    model: EnergyModel,
    scale: float,
    energies: Mapping[int, float],
    isolated: Mapping[int, float],
) -> None:
    """Set energies of bonded and of isolated atoms, by atomic number, and log the latter.

    The supported elements are the keys of ``energies``.
    """
    binding = {z: energies[z] - energy for z, energy in isolated.items()}
    model.calibrate(scale, {**energies, **isolated}, energies, binding)
    for z, energy in isolated.items():
        logger.info(
            "isolated atoms of %s: %.6f eV; initial offset of bonded atoms: %+.3f eV",
            chemical_symbols[z],
            energy,
            binding[z],
        )


def _finetuned(
    config: Config, frames: Frames, isolated: Mapping[int, float], start: str | Path
) -> EnergyModel:
    """Return a trained model with reference energies refitted to the frames.

    Total energies of different levels of theory differ mostly by a constant per element, which is
    fitted by least squares to the residuals of the model. Energies of isolated atoms stored in the
    model are kept if the level of theory is the same and dropped otherwise, except those given.
    The model supports the elements of the frames only: others are not trained further.
    """
    try:
        model = load_model(start, dtype=getattr(torch, config.run.dtype))
    except ModelFileError as error:
        raise ConfigError(f"run.finetune: {error}") from error
    model.requires_grad_(True).train()
    check_elements(model, frames, config.data.train)
    known = model.known_elements.nonzero().flatten()
    energies = dict(zip(known.tolist(), model.offsets(known).tolist(), strict=True))
    labels = model.reference_energies.tolist()
    kept = {z: labels[z] for z in model.isolated_elements}
    data = GraphFrames(frames, model, model.device)
    found = predict(model, data, config.run.eval_batch_size)
    left = found.references - found.energies.difference
    frames = dataclasses.replace(frames, energies=left.numpy())
    reference = fit_reference_energies(frames, isolated, energies)
    logger.info("finetuning %s: %s", start, reference)
    new = dict(zip(reference.elements, reference.energies, strict=True))
    if max(abs(new[z] - energies[z]) for z in new) > MAX_SHIFT:
        kept = {}
    kept = {z: energy for z, energy in kept.items() if z in new}
    _calibrate(model, model.scale.item(), new, kept | dict(isolated))
    return model

"""Smoothness of energy, forces and stiffness as a pair crosses a cutoff."""

from itertools import pairwise
from typing import NamedTuple

import ase
import numpy as np
import torch
from torch import Tensor

from ..models import EnergyModel
from ..potential import energy_and_forces
from .measures import SMOOTH, energy_of, graph_of, require
from .structures import rattled

COARSE, FINE = 1e-4, 1e-6
"""Spacings of the samples in Å."""
NOISE = 1e-14
"""Relative steps below which differences are round-off."""


class Steps(NamedTuple):
    """One number each for the energy, the forces and the stiffness."""

    energy: float
    forces: float
    stiffness: float


def cutoffs_of(model: EnergyModel) -> dict[str, float]:
    """Return all cutoffs of a model in Å: ``cutoff`` and hypers with "cutoff" in their name."""
    named = {name: value for name, value in model.hypers.items() if "cutoff" in name}
    numbers = {n: float(v) for n, v in named.items() if type(v) in (int, float) and v > 0}
    return {"cutoff": model.cutoff} | numbers


def steps_between_samples(model: EnergyModel, radius: float, spacing: float) -> Steps:
    """Return the largest steps of energy, forces and stiffness as a pair crosses a radius.

    There are sixteen samples, half on each side. The stiffness is the derivative of the forces
    along the path. Steps of the order of round-off are set to zero.
    """
    water = rattled("H2O")
    direction = np.array([0.36, 0.48, 0.8])
    samples = []
    for k in range(-8, 8):
        place = water.positions[0] + direction * (radius + (k + 0.5) * spacing)
        graph = graph_of(water + ase.Atoms("O", [place]), model)
        out = energy_and_forces(model, graph)
        along = torch.zeros_like(graph.positions)
        along[-1] = torch.from_numpy(direction)
        _, stiffness = torch.autograd.functional.hvp(
            energy_of(model, graph), graph.positions, along
        )
        samples.append((out.energy, out.forces, stiffness))
    return Steps(*(_largest_step(values) for values in zip(*samples, strict=True)))


def _largest_step(values: tuple[Tensor, ...]) -> float:
    """Return the largest difference of consecutive samples."""
    step = max((b - a).abs().max().item() for a, b in pairwise(values))
    return 0.0 if step <= NOISE * max(v.abs().max().item() for v in values) else step


def roughness(model: EnergyModel, radius: float) -> Steps:
    """Return the ratios of the steps at a spacing of 1e-6 Å to those at 1e-4 Å.

    They are 0.01 for a smooth function and 1 for one with a jump.
    """
    coarse, fine = (steps_between_samples(model, radius, h) for h in (COARSE, FINE))
    return Steps(*(f / c if f else 0.0 for f, c in zip(fine, coarse, strict=True)))


def check_smoothness(model: EnergyModel, radius: float) -> None:
    """Check that energy, forces and their derivatives do not jump where a pair crosses a radius."""
    for name, ratio in roughness(model, radius)._asdict().items():
        require(
            ratio < SMOOTH,
            f"The {name} jumps where a pair crosses {radius:g} Å. Its steps at a "
            f"spacing of {FINE:g} Å are {ratio:.2g} of those at {COARSE:g} Å; 0.01 is smooth.",
        )

"""The training loss: energies, forces and γ · LKM."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lkm_calc import EnergyForces, lkm_loss

from .config import LossConfig


class Losses(NamedTuple):
    """The loss and its parts, before weighting."""

    total: Float[Tensor, ""]
    energy: Float[Tensor, ""]
    forces: Float[Tensor, ""]
    lkm: Float[Tensor, ""]


def _distance(difference: Tensor, kind: str, delta: float) -> Tensor:
    """Return the mean L1, L2 or Huber norm of a difference."""
    if kind == "l1":
        return difference.abs().mean()
    if kind == "l2":
        return difference.square().mean()
    zero = torch.zeros_like(difference)
    return torch.nn.functional.huber_loss(difference, zero, delta=delta)


def training_loss(
    predicted: EnergyForces,
    energies: Float[Tensor, " batch"],
    forces: Float[Tensor, "atoms 3"],
    config: LossConfig,
) -> Losses:
    """Return w_E L(ΔE) + w_F L(ΔF) + γ L_KD.

    ΔE is per structure in eV and taken in float64 (total energies are thousands of eV); ΔF per
    component in eV/Å. Where γ is zero L_KD is still computed, detached, to be logged.
    """
    energy = _distance(predicted.energy - energies, config.kind, config.huber_delta)
    force = _distance(predicted.forces - forces, config.kind, config.huber_delta)
    with torch.set_grad_enabled(config.gamma > 0):
        mixing = lkm_loss(predicted.embeddings, config.lkm_distance)
    total = config.energy * energy + config.forces * force + config.gamma * mixing.double()
    return Losses(total, energy.detach(), force.detach(), mixing.detach())

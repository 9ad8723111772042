"""The training loss: energies, forces, stress and γ · LKM."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lkm_calc import EnergyForces, Prediction, lkm_loss

from ..config import LossConfig
from ..data import Batch, Totals
from .mixing import LearnedTeacher, teacher_of


class Losses(NamedTuple):
    """The total loss and its unweighted terms."""

    total: Float[Tensor, ""]
    energy: Float[Tensor, ""]
    forces: Float[Tensor, ""]
    stress: Float[Tensor, ""]
    lkm: Float[Tensor, ""]


def training_loss(
    predicted: EnergyForces | Prediction,
    batch: Batch,
    config: LossConfig,
    totals: Totals | None = None,
    gamma: Tensor | None = None,
    learned: LearnedTeacher | None = None,
) -> Losses:
    """Return w_E L(ΔE) + w_F L(ΔF) + w_S L(ΔS) + γ L_KD.

    ΔE is per structure in eV, computed in float64 (total energies are thousands of eV); ΔF is per
    component in eV/Å and ΔS per component in eV/Å³, over the structures that have labels. Weights
    of structures multiply their contributions to the first three terms but do not change the
    denominators of the means. If γ is zero, L_KD is still computed for logging, without gradients.

    Args:
        predicted: Output of the model, with forces and stress if their weights are positive.
        batch: The labels.
        config: Kinds and weights of the terms.
        totals: Totals of the whole batch if ``batch`` is a part of it; by default, of ``batch``.
        gamma: γ of this step, () float64; by default, that of the configuration.
        learned: Weights of the LKM teacher, if it is "learned".

    Raises:
        ValueError: γ is "auto" in the configuration and not given, or an error of
            :func:`train.gradients.teacher_of`.
    """
    totals = totals or batch.totals()
    zero = batch.energies.new_zeros(())
    difference = predicted.energy - batch.energies
    if config.raw_energies:
        difference = (predicted.energy.float() - batch.energies.float()).double()
    if config.energy_per_atom:
        difference = difference / batch.sizes
    weights = batch.weights
    energy = _sum(difference, config.energy_kind or config.kind, config, weights) / totals.graphs
    forces = stress = zero
    if isinstance(predicted, EnergyForces):
        n_stresses, n_forces = _counts(batch, totals)
        if batch.forces is not None:
            difference = predicted.forces - batch.forces
            if batch.counts is not None or totals.forces < totals.atoms:
                difference = torch.where(batch.forces.isfinite(), difference, 0)
            of_atoms = None
            if weights is not None:
                of_atoms = weights[batch.graph.graph_index[: batch.atoms]].unsqueeze(1)
            forces = _sum(difference, config.forces_kind or config.kind, config, of_atoms)
            forces = forces / (3 * n_forces)
        if batch.stress is not None and predicted.stress is not None:
            labelled = batch.stress.isfinite()
            difference = torch.where(labelled, predicted.stress - batch.stress, 0)
            of_cells = None if weights is None else weights.view(-1, 1, 1)
            stress = _sum(difference, config.stress_kind or config.kind, config, of_cells)
            stress = stress / (9 * n_stresses)
    with torch.set_grad_enabled(config.mixes and torch.is_grad_enabled()):
        teacher = teacher_of(predicted, batch, config, learned)
        mixing = lkm_loss(predicted.embeddings, config.lkm_distance, config.lkm_scale_free, teacher)
        mixing = mixing.double() * (batch.atoms / totals.atoms)
    total = config.energy * energy + config.forces * forces + config.stress * stress
    total = total + (_fixed_gamma(config) if gamma is None else gamma) * mixing
    return Losses(total, *(part.detach() for part in (energy, forces, stress, mixing)))


def _counts(batch: Batch, totals: Totals) -> tuple[int, int] | tuple[Tensor, Tensor]:
    """Return the numbers of stress and force labels in the whole batch, at least 1."""
    if batch.counts is None:
        return max(1, totals.stresses), max(1, totals.forces)
    stresses, forces = batch.counts.unbind()
    return stresses, forces


def _fixed_gamma(config: LossConfig) -> float:
    """Return γ of the configuration, which must be a number."""
    if config.gamma == "auto":
        raise ValueError('loss.gamma is "auto": pass γ of this step as gamma.')
    return config.gamma


def _sum(difference: Tensor, kind: str, config: LossConfig, weights: Tensor | None) -> Tensor:
    """Return the optionally weighted sum over components of |x|, x² or the Huber loss of x."""
    if kind == "l1":
        values = difference.abs()
    elif kind == "l2":
        values = difference.square()
    else:
        zero, delta = torch.zeros_like(difference), config.huber_delta
        values = torch.nn.functional.huber_loss(difference, zero, reduction="none", delta=delta)
    return values.sum() if weights is None else (values * weights).sum()

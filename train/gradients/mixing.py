"""Teachers of Layer-to-Layer Knowledge Mixing that need labels or learned weights."""

from typing import Literal

import ase
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lkm_calc import EnergyForces, EnergyModel, Graph, Prediction
from lkm_calc.graph import sum_to

from ..config import LossConfig
from ..data import Batch

TINY = 1e-12
"""Lower bound of energy errors in eV; layers with smaller errors have the same weight."""


class LearnedTeacher(nn.Module):
    """Learned weights with which the teacher of each layer is averaged over the other layers.

    w_jk = softmax over k ≠ j of logits that are initialised to zero, the mean of the others. A
    layer is excluded from its own teacher, because otherwise the weights would converge to the
    layer itself. A common teacher would not learn anything: the mean minimises the sum of squared
    distances, so its weights would return to the mean.

    Args:
        layers: Number of embeddings.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers, layers))

    def forward(self) -> Float[Tensor, "layers layers"]:
        """Return the weights, zero on the diagonal."""
        itself = torch.eye(len(self.logits), dtype=torch.bool, device=self.logits.device)
        return torch.softmax(self.logits.masked_fill(itself, -torch.inf), dim=1)


def learned_teacher(config: LossConfig, model: EnergyModel) -> LearnedTeacher | None:
    """Return initial weights to be trained with a model, or None if the teacher has none."""
    if config.lkm_teacher != "learned":
        return None
    with torch.no_grad():
        atom = Graph.from_atoms(ase.Atoms("H"), model.cutoff, model.device)
        layers = len(model(atom).embeddings)
    return LearnedTeacher(layers).to(model.device, model.dtype)


def teacher_of(
    predicted: EnergyForces | Prediction,
    batch: Batch,
    config: LossConfig,
    learned: LearnedTeacher | None = None,
) -> Literal["mean", "deeper", "neighbours"] | Tensor:
    """Return the teacher of a batch in the form expected by :func:`lkm_calc.lkm_loss`.

    Args:
        predicted: Output of the model.
        batch: The labels.
        config: Loss configuration with the kind of teacher.
        learned: Weights from :func:`learned_teacher`.

    Raises:
        ValueError: ``learned`` is required and missing, or an error of :func:`error_weights`.
    """
    if config.lkm_teacher == "error":
        return error_weights(predicted, batch)
    if config.lkm_teacher != "learned":
        return config.lkm_teacher
    if learned is None:
        raise ValueError(
            'loss.lkm_teacher is "learned": pass the weights from learned_teacher as learned.'
        )
    weights: Tensor = learned()
    return weights


def error_weights(
    predicted: EnergyForces | Prediction, batch: Batch
) -> Float[Tensor, "1 layers atoms"]:
    """Return weights of the layers in a common teacher from energy errors of truncated networks.

    If the network is truncated after layer j, the energy of structure g is E_jg, the sum of the
    contributions up to this layer. The weights are w_jg ∝ 1 / |E_jg − E_g|, the softmax of the
    negative log error. They are computed per structure, so that the result does not depend on how
    a batch is split.

    Raises:
        ValueError: The architecture does not return contributions of its layers, or not the same
            number for each layer.
    """
    layers = len(predicted.embeddings)
    if predicted.shares is None or len(predicted.shares.values) % layers:
        raise ValueError(
            'loss.lkm_teacher = "error" needs an architecture that returns layer_values, the same '
            "number for each embedding. Choose another teacher."
        )
    graphs = batch.graph.graph_index[: batch.atoms]
    with torch.no_grad():
        shares = predicted.shares.energies().unflatten(0, (layers, -1)).sum(1)
        shares = sum_to(shares.T, graphs, len(batch.energies))  # (graphs, layers)
        left_out = shares.sum(1, keepdim=True) - shares.cumsum(1)
        errors = (predicted.energy - batch.energies).unsqueeze(1) - left_out
        weights = torch.softmax(-errors.abs().clamp_min(TINY).log(), dim=1)
        return weights.index_select(0, graphs).T.unsqueeze(0).to(predicted.embeddings[0])

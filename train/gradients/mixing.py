"""Teachers of Layer-to-Layer Knowledge Mixing that only training can make: learnt, and by error."""

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
"""An energy in eV that is no error; where no layer has one, all weigh the same."""


class LearnedTeacher(nn.Module):
    """Weights with which each layer's teacher is made of the other layers, learnt with the model.

    w_jk = softmax over k ≠ j of logits that start at zero, the mean of the others. A layer has no
    part in its own teacher: otherwise every layer would soon teach itself alone. Nor is there one
    teacher for all: the squared distance of vectors to one point is smallest at their mean, to
    which weights learnt from it would come back.

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
    """Return new weights to be trained with a model, or None where the teacher needs none."""
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
    """Return the teacher of a batch as :func:`lkm_calc.lkm_loss` takes it.

    Args:
        predicted: What the model says of the batch.
        batch: The labels.
        config: Names the teacher.
        learned: What :func:`learned_teacher` made for the run.

    Raises:
        ValueError: The weights that learn are wanted and not given, or as :func:`error_weights`.
    """
    if config.lkm_teacher == "error":
        return error_weights(predicted, batch)
    if config.lkm_teacher != "learned":
        return config.lkm_teacher
    if learned is None:
        raise ValueError(
            'loss.lkm_teacher is "learned": give the weights that learned_teacher makes.'
        )
    weights: Tensor = learned()
    return weights


def error_weights(
    predicted: EnergyForces | Prediction, batch: Batch
) -> Float[Tensor, "1 layers atoms"]:
    """Return weights of the layers in one teacher for all, by the energy each would end with.

    Were the network cut after layer j, structure g would have the energy E_jg, the sum of the
    shares up to there. The weights are w_jg ∝ 1 / |E_jg − E_g|, the softmax of −log of the error.
    They are of each structure, so that pieces of a batch add up to it, wherever they are computed.

    Raises:
        ValueError: The architecture does not tell its layers' shares, or as many for each layer.
    """
    layers = len(predicted.embeddings)
    if predicted.shares is None or len(predicted.shares.values) % layers:
        raise ValueError(
            'loss.lkm_teacher = "error" needs an architecture that returns the layers\' values, '
            "one or as many for each embedding. Choose another teacher."
        )
    graphs = batch.graph.graph_index[: batch.atoms]
    with torch.no_grad():
        shares = predicted.shares.energies().unflatten(0, (layers, -1)).sum(1)
        shares = sum_to(shares.T, graphs, len(batch.energies))  # (graphs, layers)
        left_out = shares.sum(1, keepdim=True) - shares.cumsum(1)
        errors = (predicted.energy - batch.energies).unsqueeze(1) - left_out
        weights = torch.softmax(-errors.abs().clamp_min(TINY).log(), dim=1)
        return weights.index_select(0, graphs).T.unsqueeze(0).to(predicted.embeddings[0])

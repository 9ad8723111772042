"""Errors of a model on labelled frames."""

from typing import NamedTuple

import torch
from torch import Tensor

from lkm_calc import EnergyModel, energy_and_forces

from .loader import GraphFrames


class Predictions(NamedTuple):
    """Labels and predictions side by side, on the CPU in float64."""

    energies: Tensor
    """(frames) labels in eV."""
    predicted_energies: Tensor
    forces: Tensor
    """(atoms, 3) labels in eV/Å."""
    predicted_forces: Tensor
    n_atoms: Tensor
    """(frames) number of atoms."""


class Errors(NamedTuple):
    """Mean absolute and root-mean-square errors."""

    energy_mae: float
    """meV per structure."""
    energy_rmse: float
    energy_per_atom_mae: float
    """meV per atom."""
    force_mae: float
    """meV/Å per component."""
    force_rmse: float


def predict(model: EnergyModel, data: GraphFrames, batch_size: int) -> Predictions:
    """Return labels and predictions of every frame."""
    parts = []
    for indices in data.in_order(batch_size):
        graph, energies, forces = data.batch(indices)
        out = energy_and_forces(model, graph)
        parts.append((energies, out.energy, forces, out.forces))
    energies, predicted_energies, forces, predicted_forces = (
        torch.cat(column).double().cpu() for column in zip(*parts, strict=True)
    )
    return Predictions(energies, predicted_energies, forces, predicted_forces, data.n_atoms.cpu())


def errors_of(predictions: Predictions) -> Errors:
    """Return the errors, in meV and meV/Å."""
    energy = 1000 * (predictions.predicted_energies - predictions.energies)
    forces = 1000 * (predictions.predicted_forces - predictions.forces)
    return Errors(
        energy_mae=energy.abs().mean().item(),
        energy_rmse=energy.square().mean().sqrt().item(),
        energy_per_atom_mae=(energy / predictions.n_atoms).abs().mean().item(),
        force_mae=forces.abs().mean().item(),
        force_rmse=forces.square().mean().sqrt().item(),
    )

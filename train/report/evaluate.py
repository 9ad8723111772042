"""Errors of a model on labelled frames."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lkm_calc import EnergyForces, EnergyModel, Prediction, energy_and_forces, lkm_loss
from lkm_calc.graph import sum_to
from lkm_calc.runtime import own_settings

from ..data import Batch, GraphFrames


class Pair(NamedTuple):
    """Labels and predictions, on the CPU in float64."""

    labels: Tensor
    predicted: Tensor

    @property
    def difference(self) -> Tensor:
        """Predicted minus label."""
        return self.predicted - self.labels


class LayerStatistics(NamedTuple):
    """Similarity and size of the embeddings, which distinguish mixing from shrinking by LKM."""

    lkm: float
    """L_KD, mean square distance to the mean over layers."""
    norm: float
    """RMS component of the embeddings."""
    cosine: float
    """Mean cosine between the embeddings of two layers; 1 for a single layer."""


class Predictions(NamedTuple):
    """Labels and predictions of a data set."""

    energies: Pair
    """(frames) in eV, or the target property in its unit."""
    forces: Pair | None
    """(labelled atoms, 3) in eV/Å; None without labels."""
    stress: Pair | None
    """(labelled frames, 3, 3) in eV/Å³; None without labels."""
    numbers: Int[Tensor, " atoms"]
    """Atomic numbers of the atoms with force labels, or of all atoms without such labels."""
    n_atoms: Int[Tensor, " frames"]
    """Number of atoms."""
    layers: LayerStatistics
    references: Float[Tensor, " frames"]
    """Sums of the reference energies of the model, subtracted in plots of energies."""
    energy_unit: str = "eV"


class Errors(NamedTuple):
    """MAE and RMSE; None if there are no labels."""

    energy_mae: float
    """meV per structure, or 10⁻³ of the unit of the property."""
    energy_rmse: float
    energy_per_atom_mae: float
    """meV per atom."""
    force_mae: float | None = None
    """meV/Å per component."""
    force_rmse: float | None = None
    stress_mae: float | None = None
    """meV/Å³ per component."""

    def figures(self) -> dict[str, float]:
        """Return the available errors, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def model_output(
    model: EnergyModel, batch: Batch, create_graph: bool = False
) -> EnergyForces | Prediction:
    """Return energies and, if there are labels, forces and stress as their derivatives."""
    if batch.forces is None and batch.stress is None:
        with torch.set_grad_enabled(create_graph):
            prediction: Prediction = model(batch.graph)
            return prediction
    return energy_and_forces(model, batch.graph, create_graph, stress=batch.stress is not None)


@own_settings
def predict(model: EnergyModel, data: GraphFrames, batch_size: int) -> Predictions:
    """Return labels and predictions of all frames."""
    energies, forces, stress, layers, numbers, references = [], [], [], [], [], []
    labelled_atoms = []
    for indices in data.in_order(batch_size):
        batch = data.batch(indices)
        out = model_output(model, batch)
        energies.append((batch.energies, out.energy))
        if isinstance(out, EnergyForces):
            if batch.forces is not None:
                forces.append((batch.forces, out.forces))
                labelled_atoms.append(batch.forces.isfinite().all(1))
            if batch.stress is not None and out.stress is not None:
                labelled = batch.stress.isfinite().all((1, 2))
                if labelled.any():
                    stress.append((batch.stress[labelled], out.stress[labelled]))
        layers.append(_layer_statistics(out.embeddings))
        numbers.append(batch.graph.numbers)
        shares = model.offsets(batch.graph.numbers)
        references.append(sum_to(shares, batch.graph.graph_index, batch.graph.n_graphs))
    atoms = torch.tensor([float(len(n)) for n in numbers], dtype=torch.float64)
    means = (torch.stack(layers).double().cpu() * atoms.unsqueeze(1)).sum(0) / atoms.sum()
    of_atoms, force_pair = torch.cat(numbers).cpu(), None
    if forces:
        known = torch.cat(labelled_atoms).cpu()
        of_atoms = of_atoms[known]
        force_pair = Pair(*(values[known] for values in _pair(forces)))
    return Predictions(
        _pair(energies),
        force_pair,
        _pair(stress) if stress else None,
        of_atoms,
        data.atoms.counts,
        LayerStatistics(*means.tolist()),
        torch.cat(references).cpu(),
        data.energy_unit,
    )


def _pair(parts: list[tuple[Tensor, Tensor]]) -> Pair:
    return Pair(*(torch.cat(column).double().cpu() for column in zip(*parts, strict=True)))


def _layer_statistics(
    embeddings: tuple[Float[Tensor, "atoms dim"], ...],
) -> Float[Tensor, " statistics"]:
    """Return L_KD, RMS component and mean cosine between layers of a batch."""
    layers = torch.stack(embeddings)
    count = len(layers)
    directions = torch.nn.functional.normalize(layers, dim=2)
    # |Σ_j û_j|² = m + Σ_(j≠k) û_j·û_k
    cosines = (directions.sum(0).square().sum(1) - count) / max(1, count * (count - 1))
    cosine = cosines.mean() if count > 1 else layers.new_ones(())
    return torch.stack([lkm_loss(embeddings), layers.square().mean().sqrt(), cosine]).detach()


def errors_of(predictions: Predictions) -> Errors:
    """Return the errors in meV, meV/Å and meV/Å³."""
    energy = 1000 * predictions.energies.difference
    errors = Errors(
        energy_mae=energy.abs().mean().item(),
        energy_rmse=energy.square().mean().sqrt().item(),
        energy_per_atom_mae=(energy / predictions.n_atoms).abs().mean().item(),
    )
    if predictions.forces is not None:
        forces = 1000 * predictions.forces.difference
        errors = errors._replace(
            force_mae=forces.abs().mean().item(), force_rmse=forces.square().mean().sqrt().item()
        )
    if predictions.stress is not None:
        stress = 1000 * predictions.stress.difference
        errors = errors._replace(stress_mae=stress.abs().mean().item())
    return errors

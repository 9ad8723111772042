"""Forces and stress as derivatives of the energy."""

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..graph import Graph
from ..models import EnergyModel, LayerShares
from ..runtime import own_settings


class EnergyForces(NamedTuple):
    """Energies, their derivatives and further output of the model."""

    energy: Float[Tensor, " graphs"]
    """Total energies in eV."""
    forces: Float[Tensor, "atoms 3"]
    """−∂E/∂r in eV/Å."""
    stress: Float[Tensor, "graphs 3 3"] | None
    """Cauchy stress σ = (1/V) ∂E/∂ε in eV/Å³, symmetric, positive under tension as in ASE; None if
    not requested."""
    atom_energies: Float[Tensor, " atoms"]
    """Per-atom energies in eV."""
    embeddings: tuple[Float[Tensor, "atoms dim"], ...]
    """Per-atom embeddings of each layer."""
    shares: LayerShares | None = None
    """Contributions of the layers to the energy, only for training."""


@own_settings
def energy_and_forces(
    model: EnergyModel, graph: Graph, create_graph: bool = False, stress: bool = False
) -> EnergyForces:
    """Return the energy of each structure, its exact gradient as forces, and the stress.

    Args:
        model: Any energy model.
        graph: On the device of the model.
        create_graph: Keep the graph of the derivatives, for training on forces; otherwise results
            are detached.
        stress: Also return the derivative with respect to a symmetric strain, for periodic
            structures.

    Raises:
        ValueError: ``stress`` is True for a graph without a cell.
    """
    if stress and graph.cell is None:
        raise ValueError("stress requires a periodic structure; this graph has no cell.")
    graph = graph.outside_inference()
    with torch.enable_grad():
        positions = graph.positions.detach().requires_grad_()
        inputs = [positions]
        strained = replace(graph, positions=positions)
        if stress and graph.cell is not None:
            strain = positions.new_zeros(graph.n_graphs, 3, 3).requires_grad_()
            inputs.append(strain)
            unit = torch.eye(3, dtype=strain.dtype, device=strain.device)
            deformation = unit + (strain + strain.mT) / 2
            moved = torch.einsum("na,nab->nb", positions, deformation[graph.graph_index])
            strained = replace(graph, positions=moved, cell=graph.cell @ deformation)
        prediction = model(strained)
        gradients = torch.autograd.grad(
            prediction.energy.sum(), inputs, create_graph=create_graph, materialize_grads=True
        )
    stresses = None
    if stress and graph.cell is not None:
        stresses = gradients[1] / volumes(graph.cell)
    energy, atom_energies, embeddings, shares = prediction
    if not create_graph:
        energy, atom_energies = energy.detach(), atom_energies.detach()
        embeddings, shares = tuple(layer.detach() for layer in embeddings), None
    return EnergyForces(energy, -gradients[0], stresses, atom_energies, embeddings, shares)


def volumes(cell: Float[Tensor, "graphs 3 3"]) -> Float[Tensor, "graphs 1 1"]:
    """Return the volumes in Å³ of cells, given as rows of cell vectors."""
    a, b, c = cell.unbind(1)
    signed: Tensor = (a * torch.linalg.cross(b, c)).sum(1)
    return signed.abs().view(-1, 1, 1)

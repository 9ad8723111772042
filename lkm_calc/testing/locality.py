"""Tests of locality: all neighbours, no other atoms, and independence within a batch."""

from collections.abc import Sequence
from dataclasses import replace

import ase
import numpy as np
import torch

from ..compile import Capacity, pad, unpad
from ..graph import Graph
from ..models import EnergyModel
from ..potential import HeldGraph, energy_and_forces
from .measures import ROUND_OFF, graph_of, named, require, require_close

CROWD = 50
"""Minimum number of neighbours in :func:`check_neighbours`; other codes keep at most 32."""


def check_batch(model: EnergyModel, structures: Sequence[ase.Atoms]) -> None:
    """Check that energies, forces and embeddings are the same in a batch and one by one."""
    graphs = [graph_of(atoms, model) for atoms in structures]
    batch = energy_and_forces(model, Graph.collate(graphs))
    singles = [energy_and_forces(model, graph) for graph in graphs]
    pairs = {
        "Energies": (batch.energy, [s.energy for s in singles]),
        "Forces": (batch.forces, [s.forces for s in singles]),
    }
    layers = zip(*(s.embeddings for s in singles), strict=True)
    for k, (layer, members) in enumerate(zip(batch.embeddings, layers, strict=True)):
        pairs[f"Embeddings {k}"] = (layer, list(members))
    for name, (found, parts) in pairs.items():
        require_close(found, torch.cat(parts), ROUND_OFF, f"{name} in a batch and one by one")


def check_padding(model: EnergyModel, structures: Sequence[ase.Atoms], spare: float = 0.4) -> None:
    """Check that padding does not change results, as compiled code requires.

    Args:
        model: The model.
        structures: All of them periodic, or none.
        spare: Fraction of padded rows.
    """
    graph = model.prepare(Graph.collate([graph_of(atoms, model) for atoms in structures]))
    padded = pad(graph, Capacity.of(graph, spare), model.cutoff)
    stress = graph.cell is not None
    expected = energy_and_forces(model, graph, stress=stress)
    out = energy_and_forces(model, padded, stress=stress)
    found = unpad(out, graph.n_graphs, len(graph.numbers))
    for name, value in expected._asdict().items():
        if isinstance(value, torch.Tensor):
            require_close(getattr(found, name), value, ROUND_OFF, f"{name} of a padded graph")
    for layer, other in zip(found.embeddings, expected.embeddings, strict=True):
        require_close(layer, other, ROUND_OFF, "Embeddings of a padded graph")
    feel = out.forces[len(graph.numbers) :].any()
    require(not feel, "Padded graph: forces on padding atoms are not zero.")


def check_size_consistency(model: EnergyModel, one: ase.Atoms, other: ase.Atoms) -> None:
    """Check that two molecules 100 Å apart do not interact.

    Raises:
        PhysicsError: The energy is not the sum, forces differ, or an atomic energy depends on an
            atom of the other molecule.
    """
    other = other.copy()
    other.positions += [100.0, 0, 0]
    graph = graph_of(one + other, model)
    both = energy_and_forces(model, graph)
    parts = [energy_and_forces(model, graph_of(part, model)) for part in (one, other)]
    text = f"of {named(one)} and {named(other)} far apart"
    total = parts[0].energy + parts[1].energy
    require_close(both.energy, total, ROUND_OFF, f"Energy {text} against the sum")
    forces = torch.cat([part.forces for part in parts])
    require_close(both.forces, forces, ROUND_OFF, f"Forces {text} against those alone")
    positions = graph.positions.clone().requires_grad_()
    energies = model(replace(graph, positions=positions)).atom_energies
    (gradient,) = torch.autograd.grad(energies[: len(one)].sum(), positions)
    require(bool(gradient[: len(one)].any()), f"Energies {text}: they do not depend on positions.")
    require(
        not gradient[len(one) :].any(),
        f"Energies {text}: those of one molecule depend on positions of the other.",
    )


def check_longer_edges(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that additional edges beyond the cutoff do not change results."""
    out = energy_and_forces(model, graph_of(atoms, model))
    longer = energy_and_forces(model, Graph.from_atoms(atoms, model.cutoff + 1.5, model.device))
    text = f"of {named(atoms)} with edges beyond the cutoff"
    require_close(longer.energy, out.energy, ROUND_OFF, f"Energy {text}")
    require_close(longer.forces, out.forces, ROUND_OFF, f"Forces {text}")


def check_neighbours(model: EnergyModel) -> None:
    """Check that no neighbour is dropped for atoms with more than 50 neighbours.

    The energy must depend directly on the vector between any two atoms within 7/8 of the cutoff.
    """
    points = np.random.default_rng(0).normal(0, 0.9, (60, 3)) * model.cutoff / 4
    graph = graph_of(ase.Atoms("C60", points), model)
    most = int(torch.bincount(graph.edge_index[1]).max())
    require(most > CROWD, f"An atom has only {most} neighbours.")
    vectors = graph.edge_vectors().detach().requires_grad_()
    energy = model(HeldGraph(**vars(graph), vectors=vectors)).energy.sum()
    (gradient,) = torch.autograd.grad(energy, vectors, materialize_grads=True, allow_unused=True)
    heard = gradient.any(1)
    require(bool(heard.any()), "The energy does not depend on graph.edge_vectors(); use them.")
    heard = heard | heard[graph.reverse]
    distances = vectors.detach().norm(dim=1)
    deaf = ~heard & (distances < 0.875 * model.cutoff)
    require(
        not deaf.any(),
        f"With up to {most} neighbours per atom, the energy does not depend on {int(deaf.sum())}"
        f" of {len(deaf)} edges well within the cutoff of {model.cutoff:g} Å.",
    )

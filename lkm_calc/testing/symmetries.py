"""Tests of symmetries: invariance of the energy and equivariance of the forces."""

from dataclasses import replace

import ase
import numpy as np
import torch

from ..models import EnergyModel
from ..potential import EnergyForces, energy_and_forces
from .measures import ROUND_OFF, graph_of, named, require_close


def check_rigid_motions(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check invariance and equivariance under rotation, translation and reflection."""
    out = energy_and_forces(model, graph_of(atoms, model))
    matrix, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    for orthogonal in (matrix, -matrix):  # one of the two is a reflection
        proper = np.linalg.det(orthogonal) > 0
        moved = atoms.copy()
        moved.positions = atoms.positions @ orthogonal.T + [3.0, -1.0, 20.0]
        turned = energy_and_forces(model, graph_of(moved, model))
        expected = out.forces.cpu() @ torch.from_numpy(orthogonal.T.copy())
        text = f"{named(atoms)} {'turned and moved' if proper else 'mirrored and moved'}"
        require_close(turned.energy, out.energy, ROUND_OFF, f"Energy of {text}")
        require_close(turned.forces.cpu(), expected, ROUND_OFF, f"Forces of {text}")


def check_permutation(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that the order of the atoms does not matter."""
    out = energy_and_forces(model, graph_of(atoms, model))
    order = np.random.default_rng(0).permutation(len(atoms))
    permuted = energy_and_forces(model, graph_of(atoms[order], model))
    text = f"of {named(atoms)} in another order of its atoms"
    require_close(permuted.energy, out.energy, ROUND_OFF, f"Energy {text}")
    require_close(permuted.forces, out.forces[order], ROUND_OFF, f"Forces {text}")


def check_supercell(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that energy, forces and stress of a supercell agree with those of the cell."""
    repeats = np.where(atoms.pbc, [2, 1, 2], 1) if atoms.pbc[[0, 2]].any() else np.array([1, 3, 1])
    out = energy_and_forces(model, graph_of(atoms, model), stress=True)
    larger = energy_and_forces(model, graph_of(atoms * repeats, model), stress=True)
    text = f"of {named(atoms)} repeated {' × '.join(map(str, repeats))} times"
    require_close(larger.energy, repeats.prod() * out.energy, ROUND_OFF, f"Energy {text}")
    require_close(larger.forces[: len(atoms)], out.forces, ROUND_OFF, f"Forces {text}")
    if out.stress is not None and larger.stress is not None:
        require_close(larger.stress, out.stress, ROUND_OFF, f"Stress {text}")


def check_wrapping(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that translating atoms by cell vectors does not change results."""
    out = energy_and_forces(model, graph_of(atoms, model))
    shifts = np.resize([[1, 0, 0], [0, -2, 1], [0, 0, 0], [3, 1, 0]], (len(atoms), 3)) * atoms.pbc
    moved = atoms.copy()
    moved.positions += shifts @ atoms.cell
    unwrapped = energy_and_forces(model, graph_of(moved, model))
    text = f"of {named(atoms)} with atoms in other images"
    require_close(unwrapped.energy, out.energy, ROUND_OFF, f"Energy {text}")
    require_close(unwrapped.forces, out.forces, ROUND_OFF, f"Forces {text}")


def check_edge_order(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that the order of the edges does not matter."""
    edges = len(graph_of(atoms, model).reverse)
    shuffle = torch.randperm(edges, generator=torch.Generator().manual_seed(0))
    expected = energy_and_forces(model, graph_of(atoms, model))
    text = f"of {named(atoms)} with its edges in another order"
    for order in (torch.arange(edges).flip(0), shuffle):
        found = _reordered(model, atoms, order)
        require_close(found.energy, expected.energy, ROUND_OFF, f"Energy {text}")
        require_close(found.forces, expected.forces, ROUND_OFF, f"Forces {text}")


def _reordered(model: EnergyModel, atoms: ase.Atoms, order: torch.Tensor) -> EnergyForces:
    """Return the results of a structure with its edges in another order."""
    graph = graph_of(atoms, model)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    order, place = order.to(model.device), place.to(model.device)
    reordered = replace(
        graph,
        edge_index=graph.edge_index[:, order],
        reverse=place[graph.reverse[order]],
        shifts=None if graph.shifts is None else graph.shifts[order],
        slot=None,  # to be recomputed
    )
    return energy_and_forces(model, reordered)

"""Tests of forces, stress and second derivatives."""

from collections.abc import Sequence

import ase
import numpy as np
import torch

from ..embeddings import lkm_loss
from ..models import EnergyModel
from ..potential import energy_and_forces
from .measures import (
    FINITE_DIFFERENCE,
    central_difference,
    energy_of,
    graph_of,
    named,
    numerical_forces,
    require,
    require_close,
)


def check_forces(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that forces are −dE/dx by central differences of the energy, and not all zero."""
    forces = energy_and_forces(model, graph_of(atoms, model)).forces
    require(bool(forces.any()), f"Forces of {named(atoms)}: all are zero, so the test is void.")
    expected = numerical_forces(model, atoms)
    require_close(forces, expected, FINITE_DIFFERENCE, f"Forces of {named(atoms)} against −ΔE/Δx")


def check_stress(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that the stress of a periodic cell is dE/dε / volume by central differences."""
    out = energy_and_forces(model, graph_of(atoms, model), stress=True)
    expected = torch.zeros(1, 3, 3, dtype=torch.float64)
    for a, b in np.ndindex(3, 3):

        def energy(size: float, a: int = a, b: int = b) -> float:
            strain = np.eye(3)
            strain[a, b] += size / 2
            strain[b, a] += size / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            return float(model(graph_of(strained, model)).energy.item())

        expected[0, a, b] = central_difference(energy) / atoms.get_volume()
    text = f"Stress of {named(atoms)}"
    if out.stress is not None:
        require(torch.equal(out.stress, out.stress.mT), f"{text}: it is not symmetric.")
        require_close(out.stress, expected, FINITE_DIFFERENCE, f"{text} against ΔE/Δε")


def check_second_derivatives(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check the second derivatives by autograd, which training on forces needs."""
    graph = graph_of(atoms, model)
    positions = graph.positions.clone().requires_grad_()
    try:
        torch.autograd.gradgradcheck(energy_of(model, graph), (positions,))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()
        require(False, f"Second derivatives of {named(atoms)}: {' '.join(reason)[:500]}")


def check_finite(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that energy, forces and second derivatives are finite."""
    graph = graph_of(atoms, model)
    out = energy_and_forces(model, graph)
    hessian = torch.autograd.functional.hessian(energy_of(model, graph), graph.positions)
    found = {"energy": out.energy, "forces": out.forces, "second derivatives": hessian}
    for name, values in found.items():
        require(bool(torch.isfinite(values).all()), f"{name} of {named(atoms)}: not all finite.")


def check_training(model: EnergyModel, atoms: ase.Atoms) -> None:
    """Check that weight gradients of a loss of energy, forces and LKM are finite."""
    model.zero_grad()
    out = energy_and_forces(model, graph_of(atoms, model), create_graph=True)
    loss = out.energy.sum() + out.forces.square().sum() + lkm_loss(out.embeddings)
    loss.backward()
    broken = [
        name
        for name, weights in model.named_parameters()
        if weights.grad is not None and not weights.grad.isfinite().all()
    ]
    model.zero_grad()
    require(
        not broken, f"Training on {named(atoms)}: gradients of {', '.join(broken)} are not finite."
    )


def check_lone_atoms(model: EnergyModel, structures: Sequence[ase.Atoms]) -> None:
    """Check that forces on atoms without neighbours are zero."""
    for atoms in structures:
        forces = energy_and_forces(model, graph_of(atoms, model)).forces
        largest = forces.abs().max().item()
        require(largest == 0, f"{named(atoms)} without neighbours: a force of {largest:.2g} eV/Å.")

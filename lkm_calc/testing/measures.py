"""Finite differences, tolerances and errors, shared by the checks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ase
import numpy as np
import torch
from torch import Tensor

from ..graph import Graph
from ..models import EnergyModel

FINITE_DIFFERENCE = 1e-6
"""Relative error of forces and stress against central differences of the energy, float64."""
STEP = 1e-4
"""Displacement in Å of the central differences; the error of fourth order differences is h⁴."""
ROUND_OFF = 1e-10
"""Relative difference of numbers that differ only in the order of sums, float64."""
SINGLE = 1e-4
"""Relative difference of forces in float32 and float64, for any weights."""
SMOOTH = 0.05
"""Maximum ratio of the steps of a function at spacings of 1e-6 Å and 1e-4 Å; 0.01 if smooth."""


class PhysicsError(AssertionError):
    """A model violates a required property of force fields; the message has the numbers."""


def require(condition: bool, text: str) -> None:
    """Raise a PhysicsError unless a condition holds."""
    if not condition:
        raise PhysicsError(text)


def require_close(found: Tensor, expected: Tensor, bound: float, text: str) -> None:
    """Raise a PhysicsError unless values agree relative to the largest expected one.

    Args:
        found: Computed values of any shape.
        expected: Expected values of the same shape.
        bound: Maximum of :func:`relative_error`.
        text: Description of the comparison.
    """
    require(
        found.shape == expected.shape,
        f"{text}: the shape is {tuple(found.shape)} instead of {tuple(expected.shape)}.",
    )
    if torch.equal(found.cpu(), expected.cpu()):
        return
    error = relative_error(found, expected)
    require(
        error < bound,  # false for NaN
        f"{text}: the relative difference is {error:.2g}; {bound:g} is allowed.",
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected magnitude."""
    found, expected = found.cpu(), expected.cpu()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def graph_of(atoms: ase.Atoms, model: EnergyModel) -> Graph:
    """Return the graph of a structure with the model's cutoff, on its device."""
    return Graph.from_atoms(atoms, model.cutoff, model.device)


def energy_of(model: EnergyModel, graph: Graph) -> Callable[[Tensor], Tensor]:
    """Return the energy in eV as a function of the positions in Å, with fixed edges."""

    def energy(positions: Tensor) -> Tensor:
        return model(replace(graph, positions=positions)).energy.sum()  # type: ignore[no-any-return]

    return energy


def central_difference(function: Callable[[float], Any]) -> Any:
    """Return df/ds at s = 0, of a number or an array, by central differences of fourth order."""
    e = [function(k * STEP) for k in (-2, -1, 1, 2)]
    return (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * STEP)


def numerical_forces(model: EnergyModel, atoms: ase.Atoms) -> Tensor:
    """Return −ΔE/Δx in eV/Å, (atoms, 3), with a new neighbour list for every displacement."""
    forces = np.zeros((len(atoms), 3))
    for index in np.ndindex(forces.shape):

        def energy(displacement: float, index: tuple[int, ...] = index) -> float:
            moved = atoms.copy()
            moved.positions[index] += displacement
            return float(model(graph_of(moved, model)).energy.item())

        forces[index] = -central_difference(energy)
    return torch.from_numpy(forces)


def named(atoms: ase.Atoms) -> str:
    """Return the name of a structure for messages."""
    periodic = "".join("abc"[k] for k in np.flatnonzero(atoms.pbc))
    return f"{atoms.symbols}" + (f", periodic along {periodic}" if periodic else "")

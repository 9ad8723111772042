"""Second derivatives of the energy by positions, and the vibrations of a relaxed structure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ase
import numpy as np
import torch
from ase.vibrations import VibrationsData
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..graph import Graph
from ..models import EnergyModel
from ..runtime import own_settings

ROWS = 8
"""Rows that are calculated together: measured on a CPU; memory grows with it."""


@own_settings
def hessian(model: EnergyModel, graph: Graph, rows: int = ROWS) -> Float[Tensor, "atoms 3 atoms 3"]:
    """Return ∂²E/∂r∂r in eV/Å², the energy differentiated twice by autograd.

    Symmetric but for round-off. With weights in float64 exact to ten digits and more; in float32
    the bundled models err by up to 5e-5 eV/Å², which moves their frequencies by some 0.001 cm⁻¹.
    Float64 is recommended, as it also lets a relaxation go further.

    Args:
        model: Any energy model.
        graph: On the model's device; of several structures, whose blocks stand on the diagonal.
        rows: How many rows to calculate together.

    Raises:
        ValueError: ``rows`` is below 1.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; it must be at least 1.")
    graph = graph.outside_inference()
    with torch.enable_grad():
        positions = graph.positions.detach().requires_grad_()
        energy = model(replace(graph, positions=positions)).energy.sum()
        (gradient,) = torch.autograd.grad(
            energy, positions, create_graph=True, materialize_grads=True
        )
    unit = torch.eye(positions.numel(), dtype=positions.dtype, device=positions.device)
    if not gradient.requires_grad:  # no atom has a neighbour
        return torch.zeros_like(unit).view(*positions.shape, *positions.shape)
    found = [
        torch.autograd.grad(
            gradient, positions, directions, retain_graph=True, is_grads_batched=True
        )[0]
        for directions in unit.view(-1, *positions.shape).split(rows)
    ]
    return torch.cat(found).view(*positions.shape, *positions.shape)


@own_settings
def hessian_of_atoms(
    models: Sequence[EnergyModel], atoms: ase.Atoms, rows: int = ROWS
) -> NDArray[np.float64]:
    """Return the Hessian of a structure in eV/Å², (3·atoms, 3·atoms), the mean over models.

    Args:
        models: One, or the members of a committee.
        atoms: Any structure.
        rows: How many rows to calculate together; fewer take less memory.

    Raises:
        ValueError: As for :func:`hessian` and :meth:`Graph.from_atoms`, or an element is unknown.
    """
    parts = []
    for model in models:
        model.check_elements(atoms.numbers)
        found = hessian(model, Graph.from_atoms(atoms, model.cutoff, model.device), rows)
        parts.append(found.cpu().numpy().reshape(3 * len(atoms), 3 * len(atoms)))
    mean: NDArray[np.float64] = np.mean(parts, axis=0)
    return mean


def vibrations(atoms: ase.Atoms, fmax: float = 0.01) -> Any:
    """Return the harmonic vibrations of a relaxed structure, as ASE's ``VibrationsData``.

    That tells frequencies, zero-point energy, modes and their trajectories, a density of states
    and, with :mod:`ase.thermochemistry`, free energies. Atoms fixed by a constraint are left out.
    Imaginary frequencies say that the structure is a saddle point; those of translation and
    rotation are near zero, of either kind.

    Args:
        atoms: With a calculator that has ``get_hessian``, as :class:`lkm_calc.LKMCalculator`; one
            with ``dtype="float64"`` is recommended.
        fmax: Largest force on a free atom in eV/Å. Elsewhere than at a stationary point the numbers
            look plausible and mean nothing, so more is an error and not a warning; ``inf`` takes
            any structure.

    Raises:
        ValueError: A force is larger, every atom is fixed, or the calculator has no Hessian.
    """
    calculator = atoms.calc
    if not hasattr(calculator, "get_hessian"):
        raise ValueError(
            f"The calculator of atoms is {type(calculator).__name__}, which has no get_hessian. "
            "Attach an LKMCalculator, or use ase.vibrations.Vibrations, which takes differences "
            "of forces."
        )
    free = VibrationsData.indices_from_constraints(atoms)
    if not free:
        raise ValueError("Every atom is fixed by a constraint; nothing can vibrate.")
    forces = np.linalg.norm(calculator.get_property("forces", atoms)[free], axis=1)
    if not forces.max() <= fmax:
        raise ValueError(
            f"The force on atom {free[int(forces.argmax())]} is {forces.max():.3g} eV/Å, more than "
            f"fmax = {fmax:g}: this is no stationary point, and its frequencies mean nothing. "
            "Relax it first, as with ase.optimize.BFGS(atoms).run(fmax=0.001)."
        )
    whole = np.reshape(calculator.get_hessian(atoms), (len(atoms), 3, len(atoms), 3))
    part = whole[free][:, :, free]
    # The two halves differ by round-off; ASE would read one of them.
    return VibrationsData(atoms, (part + part.transpose(2, 3, 0, 1)) / 2, indices=free)

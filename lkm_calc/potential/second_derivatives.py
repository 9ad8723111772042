"""Hessian of the energy, and harmonic vibrations of a relaxed structure."""

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
"""Rows of the Hessian computed together; tuned on a CPU, memory grows with it."""


@own_settings
def hessian(model: EnergyModel, graph: Graph, rows: int = ROWS) -> Float[Tensor, "atoms 3 atoms 3"]:
    """Return ∂²E/∂r∂r in eV/Å² by differentiating the energy twice with autograd.

    It is symmetric up to round-off. With float64 weights it is accurate to at least ten digits; in
    float32 the error of the bundled models is up to 5e-5 eV/Å², which changes frequencies by about
    0.001 cm⁻¹. float64 is recommended because it also allows tighter relaxation.

    Args:
        model: Any energy model.
        graph: On the device of the model; the Hessian of several structures is block-diagonal.
        rows: Number of rows computed together.

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
    """Return the Hessian of a structure in eV/Å², (3·atoms, 3·atoms), averaged over models.

    Args:
        models: One model, or the members of a committee.
        atoms: Any structure.
        rows: Number of rows computed together; fewer need less memory.

    Raises:
        ValueError: As for :func:`hessian` and :meth:`Graph.from_atoms`, or a model was not trained
            on an element.
    """
    parts = []
    for model in models:
        model.check_elements(atoms.numbers)
        found = hessian(model, Graph.from_atoms(atoms, model.cutoff, model.device), rows)
        parts.append(found.cpu().numpy().reshape(3 * len(atoms), 3 * len(atoms)))
    mean: NDArray[np.float64] = np.mean(parts, axis=0)
    return mean


def vibrations(atoms: ase.Atoms, fmax: float = 0.01) -> Any:
    """Return the harmonic vibrations of a relaxed structure as ASE's ``VibrationsData``.

    It provides frequencies, zero-point energy, modes and their trajectories, the density of states
    and, with :mod:`ase.thermochemistry`, free energies. Atoms fixed by a constraint are left out.
    Imaginary frequencies indicate a saddle point; those of translation and rotation are near zero,
    real or imaginary.

    Args:
        atoms: With a calculator that has ``get_hessian``, such as :class:`lkm_calc.LKMCalculator`;
            ``dtype="float64"`` is recommended.
        fmax: Largest allowed force on a free atom in eV/Å, because frequencies are meaningless away
            from a stationary point; ``inf`` accepts any structure.

    Raises:
        ValueError: A force is larger, all atoms are fixed, or the calculator has no Hessian.
    """
    calculator = atoms.calc
    if not hasattr(calculator, "get_hessian"):
        raise ValueError(
            f"The calculator of atoms is {type(calculator).__name__}, which has no get_hessian. "
            "Attach an LKMCalculator, or use ase.vibrations.Vibrations (finite differences)."
        )
    free = VibrationsData.indices_from_constraints(atoms)
    if not free:
        raise ValueError("All atoms are fixed by constraints. Remove some to compute vibrations.")
    forces = np.linalg.norm(calculator.get_property("forces", atoms)[free], axis=1)
    if not forces.max() <= fmax:
        raise ValueError(
            f"The force on atom {free[int(forces.argmax())]} is {forces.max():.3g} eV/Å, more than "
            f"fmax = {fmax:g}: the structure is not a stationary point. Relax it first, for "
            "example with ase.optimize.BFGS(atoms).run(fmax=0.001)."
        )
    whole = np.reshape(calculator.get_hessian(atoms), (len(atoms), 3, len(atoms), 3))
    part = whole[free][:, :, free]
    # The two triangles differ by round-off; ASE reads only one of them.
    return VibrationsData(atoms, (part + part.transpose(2, 3, 0, 1)) / 2, indices=free)

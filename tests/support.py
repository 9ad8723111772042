"""What several test modules share: structures, data files, models and tolerances."""

import os
from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.build import molecule

from lkm_calc import EnergyModel, Graph, LKMCalculator, build_model
from lkm_calc.units import KCAL_PER_MOL

ROOT = Path(__file__).parents[1]

FINITE_DIFFERENCE = 1e-6
"""Relative error of forces and stress against central differences of the energy, float64."""
STEP = 1e-4
"""Displacement in Å of the central differences; the error of fourth order differences is h⁴."""
ROUND_OFF = 1e-10
"""Relative difference of numbers that are equal but for the order of sums, float64."""

TWO_GRAPHS = dict(hidden=16, num_layers=2, num_spherical_radial=3, local_cutoff=3.0)
device = "cpu"
"""Where the models of the tests are; the physics battery also sets it to a GPU."""

SMALL = {
    "ace": dict(num_channels=8, radial_hidden=8, num_radial=5),
    "dimenet++": dict(hidden=16, num_blocks=2, triplet_dim=8, basis_dim=4, output_dim=16),
    "mxmnet": TWO_GRAPHS,
    "pamnet": TWO_GRAPHS,
}
"""Narrow versions of the architectures, for tests that need no accuracy."""


def shared_data(name: str) -> Path:
    """Return a file of the genuine data sets, or skip the test where they are not there."""
    folder = Path(os.environ.get("LKM_DATA", ROOT.parent / "shared" / "data"))
    path = folder / name
    if not path.exists():
        pytest.skip(f"genuine data not found: {name} (set LKM_DATA to its folder)")
    return path


def small_model(name: str = "dimenet++", seed: int = 0, **hypers: object) -> EnergyModel:
    """Return a narrow float64 model as if trained: no weights zero, no frequency at a node."""
    torch.manual_seed(seed)
    model = build_model(name, **(SMALL[name] | hypers)).double().to(device)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "frequencies" in key:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
            elif not parameter.any():
                parameter.normal_(std=0.3)
    return model.eval()


def rattled(name: str = "CH3CH2OH", seed: int = 0, amplitude: float = 0.1) -> ase.Atoms:
    """Return a molecule of ASE's database with its atoms displaced at random."""
    atoms = molecule(name)
    atoms.positions += np.random.default_rng(seed).normal(0, amplitude, (len(atoms), 3))
    return atoms


def crystal(seed: int = 0, pbc: bool | list[bool] = True) -> ase.Atoms:
    """Return a triclinic, periodic cell, smaller than the cut-off, with displaced atoms."""
    atoms = ase.Atoms(
        "SiOCH",
        scaled_positions=[[0, 0, 0], [0.5, 0.4, 0.1], [0.1, 0.5, 0.6], [0.6, 0.1, 0.55]],
        cell=[[4.2, 0, 0], [0.7, 4.0, 0], [-0.4, 0.5, 4.4]],
        pbc=pbc,
    )
    atoms.rattle(0.05, seed=seed)
    return atoms


def graph_of(atoms: ase.Atoms, model: EnergyModel) -> Graph:
    """Return the graph of a structure with the model's cut-off, on its device."""
    return Graph.from_atoms(atoms, model.cutoff, model.device)


def central_difference(energy: Callable[[float], float]) -> float:
    """Return dE/ds at s = 0 by central differences of fourth order."""
    e = [energy(k * STEP) for k in (-2, -1, 1, 2)]
    return (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * STEP)


def numerical_forces(model: EnergyModel, atoms: ase.Atoms) -> torch.Tensor:
    """Return −ΔE/Δx, neighbour list built anew at every displacement, (atoms, 3)."""
    forces = np.zeros((len(atoms), 3))
    for index in np.ndindex(forces.shape):

        def energy(displacement: float, index: tuple[int, ...] = index) -> float:
            moved = atoms.copy()
            moved.positions[index] += displacement
            return model(graph_of(moved, model)).energy.item()

        forces[index] = -central_difference(energy)
    return torch.from_numpy(forces)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference over the largest expected magnitude."""
    found, expected = found.cpu(), expected.cpu()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def assert_same_numbers(found: LKMCalculator, expected: LKMCalculator) -> None:
    """Check that results and extras of two calculators are equal but for rounding."""
    for mine, other in ((found.results, expected.results), (found.extras, expected.extras)):
        for name, value in other.items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-8, atol=1e-9, err_msg=name)


def spring_labels(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return energies (M) in eV and forces (M, N, 3) in eV/Å of springs between all pairs."""
    rest = molecule("CH3CH2OH").get_all_distances()
    vectors = positions[:, :, None] - positions[:, None]
    distances = np.linalg.norm(vectors, axis=-1) + np.eye(positions.shape[1])
    stiffness = 30.0 / (rest + np.eye(len(rest))) ** 6 * (1 - np.eye(len(rest)))
    stretch = distances - rest
    energies = 0.25 * (stiffness * stretch**2).sum((1, 2))
    forces = -((stiffness * stretch / distances)[..., None] * vectors).sum(2)
    return energies - 4000.0, forces


def rmd17_arrays(frames: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the arrays of a small file in the layout of rMD17, labelled with springs."""
    atoms = molecule("CH3CH2OH")
    noise = np.random.default_rng(seed).normal(0, 0.08, (frames, len(atoms), 3))
    positions = atoms.positions + noise
    energies, forces = (labels / KCAL_PER_MOL for labels in spring_labels(positions))
    return {
        "nuclear_charges": atoms.numbers.astype(np.uint8),
        "coords": positions,
        "energies": energies,
        "forces": forces,
        "old_energies": energies + 1.0,
        "old_forces": forces,
    }


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    """Write arrays to an npz file and return its path."""
    np.savez(path, **arrays)
    return path

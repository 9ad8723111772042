"""What several test modules share: structures, data files, models and tolerances."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from lkm_calc import EnergyModel, LKMCalculator, build_model
from lkm_calc.testing import FINITE_DIFFERENCE as FINITE_DIFFERENCE
from lkm_calc.testing import ROUND_OFF as ROUND_OFF
from lkm_calc.testing import STEP as STEP
from lkm_calc.testing import central_difference as central_difference
from lkm_calc.testing import crystal as crystal
from lkm_calc.testing import graph_of as graph_of
from lkm_calc.testing import numerical_forces as numerical_forces
from lkm_calc.testing import rattled as rattled
from lkm_calc.testing import relative_error as relative_error
from lkm_calc.units import KCAL_PER_MOL

ROOT = Path(__file__).parents[1]

TWO_GRAPHS = dict(hidden=16, num_layers=2, num_spherical_radial=3, local_cutoff=3.0)
device = "cpu"
"""Where the models of the tests are; the physics battery also sets it to a GPU."""

SMALL = {
    "ace": dict(num_channels=8, num_interactions=2, radial_hidden=8, num_radial=5),
    "dimenet++": dict(hidden=16, num_blocks=2, triplet_dim=8, basis_dim=4, output_dim=16),
    "mxmnet": TWO_GRAPHS,
    "pamnet": TWO_GRAPHS,
}
"""Narrow versions of the architectures, for tests that need no accuracy."""


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    """Turn all warnings into errors but that of NumPy 2.5 that ASE 3.29 sets shapes of arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="ase")
        yield


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


def rmd17_rows(arrays: dict[str, np.ndarray], rows: slice | np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays with some of the frames."""
    return {k: v if k == "nuclear_charges" else v[rows] for k, v in arrays.items()}


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    """Write arrays to an npz file and return its path."""
    np.savez(path, **arrays)
    return path

"""Energies beside those of a pair potential that is fitted to the forces."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from ...data import Frames, edges_of
from ..checks import Floats, Ints, nonzero, through_zero

POTENTIAL_CUTOFF = 5.0
"""Reach in Å of the pair potential fitted to the forces; as the basis below, tried on rMD17."""
BASIS = 20
"""Gaussians between 0.6 Å and the reach; with 10 or 16 some rMD17 energies were not followed."""
RIDGE = 1e-3
"""Regularisation in units of the mean diagonal of the normal matrix."""
MAX_FIT_ATOMS = 4000
"""Atoms whose forces are fitted; more change the third digit only."""
MAX_TEST_FRAMES = 500
"""Frames on which the fitted potential is tested."""
MIN_TEST_FRAMES = 25
"""Test frames below which no verdict is given."""
MAX_FEATURES = 1200
"""Coefficients beyond which the fit is left out: ten elements have 1100."""


class PotentialTest(NamedTuple):
    """What a pair potential fitted to the forces of some frames says of the others."""

    explained: float
    """Share of the square of the forces that it predicts, 0 for unrelated ones."""
    correlation: float
    """Correlation of its energies with the labels, compositions removed."""
    ratio: float
    """Spread of the labels over the spread of its energies; 1 for matching units."""
    stiffness: float
    """Mean of its force constants in eV/Å², in which labels of the energy have no part."""
    n_frames: int
    """Frames tested."""


def compare_potential(frames: Frames) -> PotentialTest | None:
    """Fit a pair potential to forces and compare its energies with the labels of other frames.

    The fit never sees an energy, so that energies and forces agree only if both belong to these
    positions. It needs no similar frames and serves flexible, periodic and mixed sets.

    Returns:
        None where the file is too small, or has too many elements, for the fit.
    """
    elements = np.unique(frames.numbers)
    n_features = len(elements) * (len(elements) + 1) // 2 * BASIS
    order = np.random.default_rng(0).permutation(len(frames))
    n_fit = int(np.searchsorted(np.cumsum(frames.sizes[order]), MAX_FIT_ATOMS)) + 1
    n_fit = min(n_fit, len(order) // 2)
    fit, held = np.sort(order[:n_fit]), np.sort(order[n_fit:][:MAX_TEST_FRAMES])
    too_small = 3 * int(frames.sizes[fit].sum()) < 3 * n_features
    if frames.forces is None or too_small or len(held) < MIN_TEST_FRAMES:
        return None
    if n_features > MAX_FEATURES:
        return None
    coefficients = _fit_forces(frames.select(fit), elements)
    explained, predicted = _predict(frames.select(held), elements, coefficients)
    counts = (frames.select(held).numbers[:, None] == elements).astype(np.float64)
    counts = np.add.reduceat(counts, frames.select(held).starts[:-1])
    predicted, labels = (_residual(counts, e) for e in (predicted, frames.energies[held]))
    _, correlation = through_zero(predicted, labels)
    ratio = float(np.sqrt((labels @ labels) / nonzero(float(predicted @ predicted))))
    stiffness = _mean_stiffness(frames.select(held[:STIFFNESS_FRAMES]), elements, coefficients)
    return PotentialTest(explained, correlation, ratio, stiffness, len(held))


STIFFNESS_FRAMES = 25
"""Frames over which the force constants of the potential are averaged."""


def _mean_stiffness(frames: Frames, elements: Ints, coefficients: Floats) -> float:
    """Return −Σ ΔF·δ / Σ|δ|² for small random displacements δ, the mean force constant."""
    step = np.random.default_rng(0).normal(0, 1e-3, frames.positions.shape)
    moved = replace(frames, positions=frames.positions + step)
    work = 0.0
    for f in range(len(frames)):
        change = _design(moved, f, elements)[1] - _design(frames, f, elements)[1]
        rows = slice(frames.starts[f], frames.starts[f + 1])
        work -= float((change @ coefficients) @ step[rows].ravel())
    return work / float((step**2).sum())


def _residual(counts: Floats, energies: Floats) -> Floats:
    """Return energies less the best sum of energies of their atoms, median removed first."""
    centred = energies - np.median(energies)
    residual: Floats = centred - counts @ np.linalg.lstsq(counts, centred, rcond=None)[0]
    return residual


def _fit_forces(frames: Frames, elements: Ints) -> Floats:
    """Return the coefficients of the pair potential by regularised least squares."""
    n_features = len(elements) * (len(elements) + 1) // 2 * BASIS
    normal, right = np.zeros((n_features, n_features)), np.zeros(n_features)
    for f in range(len(frames)):
        _, design = _design(frames, f, elements)
        force = _forces_of(frames, f)
        normal += design.T @ design
        right += design.T @ force
    normal[np.diag_indices_from(normal)] += RIDGE * nonzero(float(np.trace(normal))) / len(normal)
    return np.asarray(np.linalg.solve(normal, right), dtype=np.float64)


def _predict(frames: Frames, elements: Ints, coefficients: Floats) -> tuple[float, Floats]:
    """Return the explained share of the forces, and the energies, (frames)."""
    energies = np.empty(len(frames))
    wrong = total = 0.0
    for f in range(len(frames)):
        energy_design, design = _design(frames, f, elements)
        force = _forces_of(frames, f)
        energies[f] = energy_design @ coefficients
        wrong += float(((design @ coefficients - force) ** 2).sum())
        total += float(force @ force)
    return 1 - wrong / nonzero(total), energies


def _forces_of(frames: Frames, f: int) -> Floats:
    """Return the forces of a frame, (3N)."""
    rows: Floats = np.asarray(frames.forces)[frames.starts[f] : frames.starts[f + 1]].ravel()
    return rows


def _design(frames: Frames, f: int, elements: Ints) -> tuple[Floats, Floats]:
    """Return the basis functions of a frame, (features), and minus their gradient, (3N, features).

    Feature: a Gaussian of the distance for each pair of elements.
    """
    rows = slice(frames.starts[f], frames.starts[f + 1])
    kind = np.searchsorted(elements, frames.numbers[rows])
    n_kinds = len(elements) * (len(elements) + 1) // 2
    edges, vectors = edges_of(frames, f, POTENTIAL_CUTOFF)
    source, target = edges.edge_index
    distances = np.maximum(np.linalg.norm(vectors, axis=1), 1e-6)
    low, high = np.sort([kind[source], kind[target]], axis=0)
    pair = high * (high + 1) // 2 + low
    centres = np.linspace(0.6, POTENTIAL_CUTOFF, BASIS)
    width = centres[1] - centres[0]
    offset = (distances[:, None] - centres) / width
    values = np.exp(-0.5 * offset**2)
    energy = csr_matrix(
        (np.full(len(pair), 0.5), (pair, np.arange(len(pair)))), shape=(n_kinds, len(pair))
    )
    row = (3 * target[:, None] + np.arange(3)) * n_kinds + pair[:, None]
    column = np.repeat(np.arange(len(pair)), 3)
    unit = vectors / distances[:, None]
    gradient = csr_matrix(
        (unit.ravel(), (row.ravel(), column)), shape=(3 * len(kind) * n_kinds, len(pair))
    )
    slope = gradient @ (values * offset / width)
    return (energy @ values).ravel(), slope.reshape(3 * len(kind), -1)

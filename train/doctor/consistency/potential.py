"""Comparison of energies with those of a pair potential fitted to the forces."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from ...data import Frames, edges_of
from ..checks import Floats, Ints, nonzero, through_zero

POTENTIAL_CUTOFF = 5.0
"""Cutoff of the pair potential in Å; like the basis below, chosen on rMD17."""
BASIS = 20
"""Number of Gaussians between 0.6 Å and the cutoff; 10 or 16 were insufficient for some rMD17
molecules."""
RIDGE = 1e-3
"""Regularisation in units of the mean diagonal of the normal matrix."""
MAX_FIT_ATOMS = 4000
"""Maximum number of atoms whose forces are fitted; more change only the third digit."""
MAX_TEST_FRAMES = 500
"""Maximum number of test frames."""
MIN_TEST_FRAMES = 25
"""Minimum number of test frames."""
MAX_FEATURES = 1200
"""Maximum number of coefficients: ten elements have 1100."""


class PotentialTest(NamedTuple):
    """Predictions of a pair potential fitted to forces, for frames that were not fitted."""

    explained: float
    """Explained fraction of the squared forces; 0 for unrelated forces."""
    correlation: float
    """Correlation of its energies with the labels, after subtracting reference energies."""
    ratio: float
    """Ratio of the spread of the labels to that of its energies; 1 for consistent units."""
    stiffness: float
    """Its mean force constant in eV/Å², independent of energy labels."""
    n_frames: int
    """Number of tested frames."""


def compare_potential(frames: Frames) -> PotentialTest | None:
    """Fit a pair potential to forces and compare its energies with the labels of other frames.

    Energies are not fitted, so energies and forces agree only if both belong to the positions. The
    test does not need similar frames and works for flexible, periodic and mixed sets.

    Returns:
        None if the file is too small, or has too many elements, for the fit.
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
"""Number of frames over which the force constants of the potential are averaged."""


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
    """Return energies minus fitted reference energies, after subtracting the median."""
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
    """Return the explained fraction of the forces, and the energies, (frames)."""
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

    The features are Gaussians of the distance for each pair of elements.
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

"""The energy of every frame beside what the forces of its neighbours make of it."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from .doctor_findings import Floats, Ints, Mask
from .doctor_similar import MIN_DISPLACEMENT, groups_of, nearest, superpose
from .doctor_statistics import nonzero, robust_scores, through_zero
from .frames import Frames

MIN_GROUP_FRAMES = 100
"""Frames of one sequence of atoms below which no neighbour is near enough."""
NEIGHBOURS = 10
"""Nearest frames from which the energy of each is estimated."""
MAX_DISTANCES = 500
"""Interatomic distances, the shortest, that carry the potential: all of them up to 32 atoms, the
angles of Chignolin. Longer ones made its estimates no better."""
MAX_FIT_ATOMS = 20_000
"""Atoms whose forces are fitted."""
RIDGE = 1e-6
"""Regularisation in units of the mean diagonal of the normal matrix."""
BINS = 12
"""Intervals of the displacement in which the error of an estimate is measured."""
SIZE = 0.5
SUSPECT = 6.0
"""Robust standard deviations of an energy from its estimate, at which, if the deviation is also
larger than the spread of the energies, it belongs to another frame. Of 1000 frames of an rMD17 file
one comes so far at most."""


class NeighbourTest(NamedTuple):
    """What forces say of the differences of energies, near and far."""

    slope: float
    """Least-squares slope of ΔE against what the forces make of it; 1 for matching units."""
    correlation: float
    """Correlation of the two about zero."""
    suspects: Ints
    """Frames whose energies contradict those of all their neighbours."""
    n_frames: int
    """Frames tested."""


class _Group(NamedTuple):
    """Frames of one sequence of atoms."""

    indices: Ints
    positions: Floats
    """(frames, N, 3) centred, Å."""
    forces: Floats
    """(frames, N, 3) in eV/Å."""
    energies: Floats


def compare_neighbours(frames: Frames) -> NeighbourTest | None:
    """Estimate the energy of each frame from its neighbours, by forces, and compare.

    A potential of the interatomic distances is fitted to the forces; between two frames it gives
    most of the difference of energies, and what it leaves of the forces the rest, as work along the
    straight line. So even frames that lie far apart can be compared. No energy is ever fitted.

    Returns:
        None where no molecule has MIN_GROUP_FRAMES frames.
    """
    if frames.forces is None:
        return None
    expected, found, suspects, n_frames = [], [], [], 0
    for indices in groups_of(frames):
        if len(indices) < MIN_GROUP_FRAMES:
            continue
        rows = frames.starts[indices][:, None] + np.arange(frames.sizes[indices[0]])
        positions = frames.positions[rows] - frames.positions[rows].mean(1, keepdims=True)
        group = _Group(indices, positions, frames.forces[rows], frames.energies[indices])
        pairs, estimate, distance = _estimates(group)
        difference = group.energies[pairs[1]] - group.energies[pairs[0]]
        expected.append(estimate)
        found.append(difference)
        suspects.append(indices[_contradicted(group, pairs, difference - estimate, distance)])
        n_frames += len(indices)
    if not n_frames:
        return None
    slope, correlation = through_zero(np.concatenate(expected), np.concatenate(found))
    return NeighbourTest(slope, correlation, np.concatenate(suspects), n_frames)


def _estimates(group: _Group) -> tuple[Ints, Floats, Floats]:
    """Return pairs of near frames, (2, pairs), their ΔE by forces alone, and how far they lie."""
    energies, forces = _fitted(group.positions, group.forces)
    rest = group.forces - forces
    first, second = nearest(group.positions, NEIGHBOURS)
    rotation = superpose(group.positions[second], group.positions[first])
    moved = group.positions[second] @ rotation - group.positions[first]
    distance = np.linalg.norm(moved, axis=(1, 2))
    work = -0.5 * ((rest[second] @ rotation + rest[first]) * moved).sum((1, 2))
    kept = distance > MIN_DISPLACEMENT
    estimate = (energies[second] - energies[first] + work)[kept]
    return np.stack([first, second])[:, kept], estimate, distance[kept]


def _fitted(positions: Floats, forces: Floats) -> tuple[Floats, Floats]:
    """Return energies and forces of the potential that fits the forces of the frames best.

    A parabola in the inverse of each of the distances, for each pair of atoms its own.
    """
    n_frames, n_atoms = positions.shape[:2]
    i, j = _shortest(positions)
    vectors = positions[:, i] - positions[:, j]
    distances = np.linalg.norm(vectors, axis=-1)
    inverse = 1 / np.maximum(distances, 1e-6)
    spread = np.maximum(inverse.std(0), 1e-6)
    offset = (inverse - inverse.mean(0)) / spread
    pull = vectors * (inverse**3 / spread)[..., None]  # minus the gradient of the offset, atom i
    signs = np.repeat([1.0, -1.0], len(i))
    rows = (3 * np.concatenate([i, j])[:, None] + np.arange(3)).ravel()
    columns = np.tile(np.repeat(np.arange(len(i)), 3), 2)

    def design(f: int) -> csr_matrix:
        """Return the forces by unit coefficients, (3N, features)."""
        linear = (np.tile(pull[f], (2, 1)) * signs[:, None]).ravel()
        square = (np.tile(pull[f] * 2 * offset[f][:, None], (2, 1)) * signs[:, None]).ravel()
        values, both = np.concatenate([linear, square]), np.concatenate([columns, columns + len(i)])
        return csr_matrix((values, (np.tile(rows, 2), both)), shape=(3 * n_atoms, 2 * len(i)))

    normal, right = np.zeros((2 * len(i), 2 * len(i))), np.zeros(2 * len(i))
    stride = -(-n_frames * n_atoms // MAX_FIT_ATOMS)
    for f in range(0, n_frames, stride):
        matrix = design(f)
        normal += (matrix.T @ matrix).toarray()
        right += matrix.T @ forces[f].ravel()
    normal[np.diag_indices_from(normal)] += RIDGE * nonzero(float(np.trace(normal))) / len(normal)
    coefficients = np.linalg.solve(normal, right)
    energies: Floats = np.concatenate([offset, offset**2], axis=1) @ coefficients
    fitted = np.stack([(design(f) @ coefficients).reshape(-1, 3) for f in range(n_frames)])
    return energies, fitted


def _shortest(positions: Floats) -> tuple[Ints, Ints]:
    """Return the pairs of atoms of the shortest distances, as they are in a few of the frames."""
    i, j = np.triu_indices(positions.shape[1], 1)
    few = positions[:: -(-len(positions) // 25)]
    mean = np.linalg.norm(few[:, i] - few[:, j], axis=-1).mean(0)
    order = np.argsort(mean)[:MAX_DISTANCES]
    return i[order], j[order]


def _contradicted(group: _Group, pairs: Ints, deviation: Floats, distance: Floats) -> Mask:
    """Tell of each frame whether its energy contradicts those of its neighbours."""
    error = _error(distance, deviation)
    excess, errors = np.zeros(len(group.indices)), np.ones(len(group.indices))
    ends = np.concatenate(pairs)
    values, weights = np.concatenate([-deviation, deviation]), np.tile(error, 2)
    for f, own in enumerate(np.split(np.argsort(ends), np.cumsum(np.bincount(ends))[:-1])):
        if len(own):
            excess[f] = _weighted_median(values[own], weights[own] ** -2)
            errors[f] = np.median(weights[own])
    energies = group.energies - np.median(group.energies)
    spread = 1.4826 * np.median(np.abs(energies))
    # A frame of very high energy may be estimated badly and still not be another's.
    size = SIZE * np.maximum(np.abs(energies), np.abs(energies - excess))
    scores = np.abs(robust_scores(excess / errors, 1e-6))
    found: Mask = (scores > SUSPECT) & (np.abs(excess) > np.maximum(spread, size))
    return found


def _error(distance: Floats, deviation: Floats) -> Floats:
    """Return the robust standard error of estimates, a power of the distance of two frames."""
    bins = np.array_split(np.argsort(distance), BINS)
    x = np.log([np.median(distance[own]) for own in bins])
    y = np.log([max(1.4826 * float(np.median(np.abs(deviation[own]))), 1e-9) for own in bins])
    error: Floats = np.exp(np.polyval(np.polyfit(x, y, 1), np.log(distance)))
    return error


def _weighted_median(values: Floats, weights: Floats) -> float:
    """Return the value that half of the weight lies below."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(below, below[-1] / 2)]])

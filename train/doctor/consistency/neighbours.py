"""Comparison of the energy of each frame with an estimate from forces of similar frames."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial.distance import pdist

from ...data import Frames
from ..checks import Floats, Ints, Mask, nonzero, robust_scores
from .similar import MIN_DISPLACEMENT, groups_of, nearest, superpose

MIN_GROUP_FRAMES = 100
"""Minimum number of frames of one sequence of atoms; with fewer, neighbours are too far."""
NEIGHBOURS = 10
"""Number of nearest frames used to estimate the energy of each frame."""
MAX_DISTANCES = 500
"""Number of shortest interatomic distances in the potential: all of them up to 32 atoms, up to
angles in Chignolin. Longer ones did not improve the estimates."""
MAX_FIT_ATOMS = 20_000
"""Maximum number of atoms whose forces are fitted."""
RIDGE = 1e-6
"""Regularisation in units of the mean diagonal of the normal matrix."""
BINS = 12
"""Number of bins of the displacement for the error of the estimates."""
SUSPECT = 6.0
"""Robust standard deviations of an energy from its estimate above which it is suspect, if the
deviation also exceeds the spread of the energies. This holds for at most two of the 1000 frames of
an rMD17 file and none of Chignolin; of 50 frames with shuffled energies, for 14 to 28."""
HIGH = 0.8
"""The deviation must also exceed this fraction of the energy relative to the median: for colliding
atoms, estimates are wrong by up to half of it."""


class NeighbourTest(NamedTuple):
    """Frames whose energies are inconsistent with the forces."""

    suspects: Ints
    """Frames whose energies are inconsistent with those of their neighbours."""
    n_frames: int
    """Number of tested frames."""


class _Group(NamedTuple):
    """Frames with the same sequence of atoms."""

    indices: Ints
    positions: Floats
    """(frames, N, 3) centred, Å."""
    forces: Floats
    """(frames, N, 3) in eV/Å."""
    energies: Floats


def compare_neighbours(frames: Frames) -> NeighbourTest | None:
    """Compare the energy of each frame with estimates from neighbouring frames and forces.

    A potential of the interatomic distances is fitted to the forces. It provides most of the energy
    difference of two frames; the work of the residual forces along the straight line provides the
    rest. Even distant frames can be compared in this way. Energies are not fitted.

    Returns:
        None if no molecule has MIN_GROUP_FRAMES frames.
    """
    if frames.forces is None:
        return None
    suspects, n_frames = [], 0
    for indices in groups_of(frames):
        if len(indices) < MIN_GROUP_FRAMES:
            continue
        rows = frames.starts[indices][:, None] + np.arange(frames.sizes[indices[0]])
        positions = frames.positions[rows] - frames.positions[rows].mean(1, keepdims=True)
        group = _Group(indices, positions, frames.forces[rows], frames.energies[indices])
        pairs, estimate, distance = _estimates(group)
        if len(distance) < MIN_GROUP_FRAMES:  # the others are copies
            continue
        difference = group.energies[pairs[1]] - group.energies[pairs[0]]
        suspects.append(indices[_contradicted(group, pairs, difference - estimate, distance)])
        n_frames += len(indices)
    if not n_frames:
        return None
    return NeighbourTest(np.sort(np.concatenate(suspects)), n_frames)


def _estimates(group: _Group) -> tuple[Ints, Floats, Floats]:
    """Return pairs of near frames, (2, pairs), their ΔE from forces, and their distances."""
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


class _Basis(NamedTuple):
    """Parabolas in the inverse distance of each pair of atoms."""

    i: Ints
    j: Ints
    offset: Floats
    """(frames, pairs) standardised inverse distance."""
    pull: Floats
    """(frames, pairs, 3) minus its gradient on atom i."""

    @property
    def energies(self) -> Floats:
        """(frames, features) energies for unit coefficients."""
        return np.concatenate([self.offset, self.offset**2], axis=1)

    def forces(self, f: int, n_atoms: int) -> csr_matrix:
        """Return the forces on a frame for unit coefficients, (3 atoms, features)."""
        linear, square = self.pull[f], 2 * self.offset[f][:, None] * self.pull[f]
        values = np.concatenate([linear, -linear, square, -square]).ravel()
        atoms = np.concatenate([self.i, self.j, self.i, self.j])
        rows = (3 * atoms[:, None] + np.arange(3)).ravel()
        pairs = np.repeat(np.arange(len(self.i)), 3)
        columns = np.concatenate([pairs, pairs, pairs + len(self.i), pairs + len(self.i)])
        return csr_matrix((values, (rows, columns)), shape=(3 * n_atoms, 2 * len(self.i)))


def _fitted(positions: Floats, forces: Floats) -> tuple[Floats, Floats]:
    """Return energies and forces of the potential fitted to the forces."""
    n_frames, n_atoms = positions.shape[:2]
    basis = _basis(positions)
    n_features = 2 * len(basis.i)
    normal, right = np.zeros((n_features, n_features)), np.zeros(n_features)
    for f in range(0, n_frames, -(-n_frames * n_atoms // MAX_FIT_ATOMS)):
        design = basis.forces(f, n_atoms)
        normal += (design.T @ design).toarray()
        right += design.T @ forces[f].ravel()
    normal[np.diag_indices_from(normal)] += RIDGE * nonzero(float(np.trace(normal))) / n_features
    coefficients = np.linalg.solve(normal, right)
    fitted = [basis.forces(f, n_atoms) @ coefficients for f in range(n_frames)]
    return basis.energies @ coefficients, np.reshape(fitted, forces.shape)


def _basis(positions: Floats) -> _Basis:
    """Return the basis of the shortest distances of the frames."""
    i, j = _shortest(positions)
    vectors = positions[:, i] - positions[:, j]
    inverse = 1 / np.maximum(np.linalg.norm(vectors, axis=-1), 1e-6)
    spread = np.maximum(inverse.std(0), 1e-6)
    pull = vectors * (inverse**3 / spread)[..., None]
    return _Basis(i, j, (inverse - inverse.mean(0)) / spread, pull)


def _shortest(positions: Floats) -> tuple[Ints, Ints]:
    """Return the pairs of atoms with the shortest mean distances in a sample of the frames."""
    i, j = np.triu_indices(positions.shape[1], 1)
    few = positions[:: -(-len(positions) // 25)]
    order = np.argsort(sum(pdist(frame) for frame in few))[:MAX_DISTANCES]
    return i[order], j[order]


def _contradicted(group: _Group, pairs: Ints, deviation: Floats, distance: Floats) -> Mask:
    """Return for each frame whether its energy is inconsistent with those of its neighbours."""
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
    size = HIGH * np.maximum(np.abs(energies), np.abs(energies - excess))
    scores = np.abs(robust_scores(excess / errors, 1e-6))
    found: Mask = (scores > SUSPECT) & (np.abs(excess) > np.maximum(spread, size))
    return found


def _error(distance: Floats, deviation: Floats) -> Floats:
    """Return the robust standard error of estimates, fitted as a power law of the distance."""
    bins = np.array_split(np.argsort(distance), BINS)
    x = np.log([np.median(distance[own]) for own in bins])
    y = np.log([max(1.4826 * float(np.median(np.abs(deviation[own]))), 1e-9) for own in bins])
    error: Floats = np.exp(np.polyval(np.polyfit(x, y, 1), np.log(distance)))
    return error


def _weighted_median(values: Floats, weights: Floats) -> float:
    """Return the weighted median."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(below, below[-1] / 2)]])

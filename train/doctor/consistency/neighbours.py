"""The energy of every frame beside what the forces of its neighbours make of it."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial.distance import pdist

from ...data import Frames
from ..checks import Floats, Ints, Mask, nonzero, robust_scores
from .similar import MIN_DISPLACEMENT, groups_of, nearest, superpose

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
SUSPECT = 6.0
"""Robust standard deviations of an energy from its estimate above which it belongs to another
frame, if the deviation is larger than the spread of the energies, too. Of the 1000 frames of an
rMD17 file two come so far at most, of Chignolin none; of 50 with shuffled energies 14 to 28."""
HIGH = 0.8
"""Share of an energy, counted from the median, that its deviation must reach besides: where atoms
collide, estimates are bad by as much as half of it."""


class NeighbourTest(NamedTuple):
    """Which energies the forces do not lead to."""

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


class _Basis(NamedTuple):
    """Parabolas in the inverse of distances, for each pair of atoms its own."""

    i: Ints
    j: Ints
    offset: Floats
    """(frames, pairs) inverse distance less its mean, over its spread."""
    pull: Floats
    """(frames, pairs, 3) minus its gradient on atom i."""

    @property
    def energies(self) -> Floats:
        """(frames, features) energies by unit coefficients."""
        return np.concatenate([self.offset, self.offset**2], axis=1)

    def forces(self, f: int, n_atoms: int) -> csr_matrix:
        """Return the forces on a frame by unit coefficients, (3 atoms, features)."""
        linear, square = self.pull[f], 2 * self.offset[f][:, None] * self.pull[f]
        values = np.concatenate([linear, -linear, square, -square]).ravel()
        atoms = np.concatenate([self.i, self.j, self.i, self.j])
        rows = (3 * atoms[:, None] + np.arange(3)).ravel()
        pairs = np.repeat(np.arange(len(self.i)), 3)
        columns = np.concatenate([pairs, pairs, pairs + len(self.i), pairs + len(self.i)])
        return csr_matrix((values, (rows, columns)), shape=(3 * n_atoms, 2 * len(self.i)))


def _fitted(positions: Floats, forces: Floats) -> tuple[Floats, Floats]:
    """Return energies and forces of the potential that fits the forces of the frames best."""
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
    """Return the parabolas in the shortest distances of the frames."""
    i, j = _shortest(positions)
    vectors = positions[:, i] - positions[:, j]
    inverse = 1 / np.maximum(np.linalg.norm(vectors, axis=-1), 1e-6)
    spread = np.maximum(inverse.std(0), 1e-6)
    pull = vectors * (inverse**3 / spread)[..., None]
    return _Basis(i, j, (inverse - inverse.mean(0)) / spread, pull)


def _shortest(positions: Floats) -> tuple[Ints, Ints]:
    """Return the pairs of atoms of the shortest distances, as they are in a few of the frames."""
    i, j = np.triu_indices(positions.shape[1], 1)
    few = positions[:: -(-len(positions) // 25)]
    order = np.argsort(sum(pdist(frame) for frame in few))[:MAX_DISTANCES]
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
    size = HIGH * np.maximum(np.abs(energies), np.abs(energies - excess))
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

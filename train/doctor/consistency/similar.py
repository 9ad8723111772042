"""Search for similar frames with the same atoms, and their superposition."""

import numpy as np

from ...data import Frames
from ..checks import Floats, Ints

MAX_PAIR_FRAMES = 2000
"""Maximum number of frames for the nearest-neighbour search, which is quadratic (2000: 1 s)."""
RUN = 10
"""Number of consecutive frames sampled together from larger files, as they are similar in
trajectories."""
MIN_DISPLACEMENT = 1e-3
"""Displacement in Å below which frames are identical and not informative as a pair."""
MAX_DISTANCES = 500
"""Maximum number of interatomic distances used to compare frames."""


def groups_of(frames: Frames) -> list[Ints]:
    """Return groups of two or more non-periodic frames with the same sequence of atoms."""
    members: dict[bytes, list[int]] = {}
    for f in _sample(len(frames)).tolist():
        if frames.pbc is None or not frames.pbc[f].any():
            key = frames.numbers[frames.starts[f] : frames.starts[f + 1]].tobytes()
            members.setdefault(key, []).append(f)
    return [
        np.array(group)
        for group in members.values()
        if len(group) > 1 and frames.sizes[group[0]] > 1
    ]


def _sample(n_frames: int) -> Ints:
    """Return all frames, or evenly spaced runs of consecutive frames."""
    if n_frames <= MAX_PAIR_FRAMES:
        return np.arange(n_frames)
    first = np.linspace(0, n_frames - RUN, MAX_PAIR_FRAMES // RUN).astype(np.int64)
    return np.unique(first[:, None] + np.arange(RUN))


def nearest(positions: Floats, n_neighbours: int) -> tuple[Ints, Ints]:
    """Return pairs of frames that are nearest neighbours in terms of interatomic distances."""
    n_frames, n_atoms = positions.shape[:2]
    i, j = np.triu_indices(n_atoms, 1)
    chosen = np.random.default_rng(0).permutation(len(i))[:MAX_DISTANCES]
    distances = np.linalg.norm(positions[:, i[chosen]] - positions[:, j[chosen]], axis=-1)
    distances -= distances.mean(0)
    norms = (distances**2).sum(1)
    squares = norms[:, None] + norms - 2 * distances @ distances.T
    np.fill_diagonal(squares, np.inf)
    k = min(n_neighbours, n_frames - 1)
    near = np.argpartition(squares, k - 1, axis=1)[:, :k]
    pairs = np.stack([np.repeat(np.arange(n_frames), k), near.ravel()])
    first, second = np.unique(np.sort(pairs, axis=0), axis=1)
    return first, second


def superpose(moving: Floats, fixed: Floats) -> Floats:
    """Return the rotations that best superpose centred structures, (pairs, 3, 3)."""
    left, _, right = np.linalg.svd(np.einsum("pni,pnj->pij", moving, fixed))
    # Exclude reflections, which are not motions of a molecule.
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    rotation: Floats = left @ right
    return rotation

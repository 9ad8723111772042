"""Frames of the same atoms that resemble each other, and how they are laid onto one another."""

import numpy as np

from ...data import Frames
from ..checks import Floats, Ints

MAX_PAIR_FRAMES = 2000
"""Frames in which nearest neighbours are sought; the search is quadratic, 2000 take a second."""
RUN = 10
"""Consecutive frames taken together when a file has more: in a trajectory they are close."""
MIN_DISPLACEMENT = 1e-3
"""Displacement in Å below which frames are the same and a pair of them says nothing."""
MAX_DISTANCES = 500
"""Interatomic distances by which frames are compared; a sample of them finds neighbours too."""


def groups_of(frames: Frames) -> list[Ints]:
    """Return the frames of each sequence of atoms, non-periodic, two or more of each."""
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
    """Return all frames, or runs of consecutive ones spread evenly over them."""
    if n_frames <= MAX_PAIR_FRAMES:
        return np.arange(n_frames)
    first = np.linspace(0, n_frames - RUN, MAX_PAIR_FRAMES // RUN).astype(np.int64)
    return np.unique(first[:, None] + np.arange(RUN))


def nearest(positions: Floats, n_neighbours: int) -> tuple[Ints, Ints]:
    """Return pairs of frames that are nearest neighbours in their interatomic distances."""
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
    """Return the rotations that best lay centred structures onto others, (pairs, 3, 3)."""
    left, _, right = np.linalg.svd(np.einsum("pni,pnj->pij", moving, fixed))
    # A reflection would fit better at times, but no motion of a molecule is one.
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    rotation: Floats = left @ right
    return rotation

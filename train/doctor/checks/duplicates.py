"""Frames that occur more than once."""

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from ...data import Frames
from .compositions import kinds_of
from .findings import Finding, Floats, Ints, name_frames

EXACT = 1e-5
"""Difference in Å of interatomic distances below which frames are one: files hold five digits
or float32. The closest two of 2000 rMD17 frames of a molecule differ by 0.004 Å."""
NEAR = 1e-3
"""The same for frames that teach nothing new: a hydrogen moves 0.01 Å in a step of MD."""
DUPLICATE_SHARE = 5e-4
"""Share of exact duplicates that a set may have. QM9 has 44 among 130,831 molecules."""
FINGERPRINT = 12
"""Sorted distances by which duplicates are looked up before they are compared in full."""


def find_duplicates(frames: Frames, usable: Ints) -> list[Finding]:
    """Find frames that agree up to rigid motion, by their sorted distances; mirror images apart."""
    kinds = kinds_of(frames)
    pairs = [_same(frames, np.flatnonzero(kinds == k)) for k in np.unique(kinds)]
    a, b, difference = np.concatenate(pairs, axis=1)
    first, second = usable[a.astype(np.int64)], usable[b.astype(np.int64)]
    findings = []
    mirrored = np.array(
        [_mirrored(frames, int(i), int(j)) for i, j in zip(a, b, strict=True)], bool
    )
    exact = (difference < EXACT) & ~mirrored
    if exact.any():
        gap = np.abs(frames.energies[a[exact].astype(int)] - frames.energies[b[exact].astype(int)])
        message = (
            f"{name_frames(np.unique(second[exact]))} repeat the geometry of others, the first "
            f"that of frame {first[exact][0]}; their energies differ by up to {gap.max():.2g} eV. "
            "Remove them: copies on both sides of a split make the validation worthless."
        )
        many = exact.sum() > DUPLICATE_SHARE * len(frames)
        findings.append(Finding("fault" if many else "note", "duplicates", message))
    if not exact.all():
        message = (
            f"{name_frames(np.unique(second[~exact]))} are within {NEAR:g} Å of others or of their "
            f"mirror images, the first of frame {first[~exact][0]}. Sample further apart, or keep "
            "them in one part of a split."
        )
        findings.append(Finding("note", "near duplicates", message))
    return findings


def _mirrored(frames: Frames, a: int, b: int) -> bool:
    """Tell whether two frames of equal distances are mirror images and not the same.

    Both exist in a set of chiral molecules, with equal energies. Atoms must be in the same order.
    """
    one, other = (slice(frames.starts[f], frames.starts[f + 1]) for f in (a, b))
    if not np.array_equal(frames.numbers[one], frames.numbers[other]):
        return False
    x, y = (frames.positions[r] - frames.positions[r].mean(0) for r in (one, other))
    left, size, right = np.linalg.svd(x.T @ y)
    # The best superposition is a reflection, and a rotation is worse by more than NEAR.
    worse = 4 * size[-1] / len(x) > NEAR**2
    return bool(np.linalg.det(left @ right) < 0 and worse)


def _same(frames: Frames, group: Ints) -> Floats:
    """Return pairs of frames of one composition that agree, and by how many Å, (3, pairs).

    Equal fingerprints are first merged, so that many copies of one frame give one pair each.
    """
    size = int(frames.sizes[group[0]])
    n_distances = size * (size - 1) // 2
    if len(group) < 2 or n_distances == 0:
        return np.empty((3, 0))
    entries = np.unique(np.linspace(0, n_distances - 1, FINGERPRINT).astype(np.int64))
    prints = np.array([_sorted_distances(frames, f)[entries] for f in group.tolist()])
    _, kept, copy_of = np.unique(
        np.round(prints / EXACT), axis=0, return_index=True, return_inverse=True
    )
    candidates = [(kept[k], i) for i, k in enumerate(copy_of.ravel()) if kept[k] != i]
    candidates += [(kept[i], kept[j]) for i, j in cKDTree(prints[kept]).query_pairs(NEAR, p=np.inf)]
    found = []
    for i, j in candidates:
        a, b = sorted((int(group[i]), int(group[j])))
        gap = np.abs(_sorted_distances(frames, a) - _sorted_distances(frames, b)).max()
        if gap < NEAR:
            found.append((a, b, gap))
    return np.array(sorted(found), dtype=np.float64).reshape(-1, 3).T


def _sorted_distances(frames: Frames, f: int) -> Floats:
    """Return the interatomic distances of a frame in rising order, nearest images if periodic."""
    positions = frames.positions[frames.starts[f] : frames.starts[f + 1]]
    if frames.cells is None or frames.pbc is None or not frames.pbc[f].any():
        return np.sort(pdist(positions))
    i, j = np.triu_indices(len(positions), 1)
    vectors = positions[i] - positions[j]
    # Rounded fractions are the nearest image of a nearly rectangular cell, and in any cell they
    # do not change when atoms move by whole cell vectors.
    inverse = np.linalg.pinv(frames.cells[f])
    vectors -= np.where(frames.pbc[f], np.round(vectors @ inverse), 0) @ frames.cells[f]
    return np.sort(np.linalg.norm(vectors, axis=1))

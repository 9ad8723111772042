"""Duplicate frames."""

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from ...data import Frames
from .compositions import kinds_of
from .findings import Finding, Floats, Ints, indices, name_frames

EXACT = 1e-5
"""Tolerance in Å for distances of identical frames: files have five digits or float32. The closest
two of 2000 rMD17 frames of a molecule differ by 0.004 Å."""
NEAR = 1e-3
"""The same for redundant frames: a hydrogen moves 0.01 Å per MD step."""
DUPLICATE_SHARE = 5e-4
"""Tolerated fraction of exact duplicates. QM9 has 44 among 130,831 molecules."""
FINGERPRINT = 12
"""Number of sorted distances used to search for duplicates before a full comparison."""


def find_duplicates(frames: Frames, usable: Ints) -> list[Finding]:
    """Find frames that agree up to rigid motion, by sorted distances, except mirror images."""
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
            f"{name_frames(np.unique(second[exact]))} repeat the geometry of other frames (first: "
            f"frame {first[exact][0]}); their energies differ by up to {gap.max():.2g} eV. Remove "
            "them: duplicates in training and validation sets invalidate the validation errors."
        )
        many = exact.sum() > DUPLICATE_SHARE * len(frames)
        repeated = indices(np.union1d(first[exact], second[exact]))
        findings.append(Finding("fault" if many else "note", "duplicates", message, repeated))
    if not exact.all():
        message = (
            f"{name_frames(np.unique(second[~exact]))} are within {NEAR:g} Å of other frames or "
            f"their mirror images (first: frame {first[~exact][0]}). Sample less densely, or keep "
            "them in the same part of the split."
        )
        near = indices(np.union1d(first[~exact], second[~exact]))
        findings.append(Finding("note", "near duplicates", message, near))
    return findings


def _mirrored(frames: Frames, a: int, b: int) -> bool:
    """Return whether two frames with equal distances are mirror images and not identical.

    Both can occur in a set of chiral molecules. Atoms must be in the same order.
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
    """Return pairs of similar frames of one composition and their difference in Å, (3, pairs).

    Equal fingerprints are merged first, so that each copy of a frame gives only one pair.
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
    """Return the sorted interatomic distances of a frame, of nearest images if periodic."""
    positions = frames.positions[frames.starts[f] : frames.starts[f + 1]]
    if frames.cells is None or frames.pbc is None or not frames.pbc[f].any():
        return np.sort(pdist(positions))
    i, j = np.triu_indices(len(positions), 1)
    vectors = positions[i] - positions[j]
    # Rounding fractional coordinates gives the nearest image in nearly rectangular cells, and in
    # any cell it is invariant under translation of atoms by cell vectors.
    inverse = np.linalg.pinv(frames.cells[f])
    vectors -= np.where(frames.pbc[f], np.round(vectors @ inverse), 0) @ frames.cells[f]
    return np.sort(np.linalg.norm(vectors, axis=1))

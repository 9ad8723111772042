"""Shortest distances, and atoms that are too close."""

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from ...data import MIN_DISTANCE, Frames, edges_of
from .findings import Finding, Floats, Ints, indices, name_frames

MIN_CONTACT = 0.5
"""Minimum plausible distance relative to the sum of covalent radii. The minimum in rMD17 (500 K)
and in Chignolin at up to 600 K is 0.79."""


def measure_distances(frames: Frames, usable: Ints) -> tuple[Floats, Floats, list[Finding]]:
    """Return the shortest distances in Å and relative to covalent radii, and findings."""
    closest, contacts = np.full(len(frames), np.nan), np.full(len(frames), np.nan)
    radii = covalent_radii[frames.numbers]
    cutoff = 4 * float(radii.max())
    close, lost, pair = [], [], ""
    for f in range(len(frames)):
        try:
            edges, vectors = edges_of(frames, f, cutoff)
        except ValueError:
            lost.append(f)
            continue
        source, target = edges.edge_index
        if not len(source):
            continue
        distances = np.linalg.norm(vectors, axis=1)
        first = frames.starts[f]
        ratio = distances / (radii[first + source] + radii[first + target])
        closest[f], contacts[f] = distances.min(), ratio.min()
        if closest[f] < MIN_DISTANCE or contacts[f] < MIN_CONTACT:
            close.append(f)
            worst = int(ratio.argmin())
            pair = pair or _name_pair(
                frames, f, int(source[worst]), int(target[worst]), float(distances[worst])
            )
    findings = []
    if close:
        message = (
            f"atoms nearly coincide in {name_frames(usable[close])}; in the first, {pair}. Remove "
            "the frames, or convert positions to Å."
        )
        findings.append(Finding("fault", "too close", message, indices(usable[close])))
    if lost:
        where = name_frames(usable[lost])
        message = f"the cell is flat or too large, or atoms are too far apart, in {where}."
        message += " Remove these frames."
        findings.append(Finding("fault", "geometry", message, indices(usable[lost])))
    return closest, contacts, findings


def _name_pair(frames: Frames, f: int, a: int, b: int, distance: float) -> str:
    """Describe two atoms and their distance."""
    a, b = sorted((a, b))
    first, second = (chemical_symbols[frames.numbers[frames.starts[f] + k]] for k in (a, b))
    return f"atoms {a} ({first}) and {b} ({second}) are {distance:.3g} Å apart"

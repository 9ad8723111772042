"""Reference energies, and outliers of the residual energies."""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from ...data import MIN_FRAMES_FOR_STIFFNESS, Frames, fit_reference_energies, lowest_energies
from .compositions import kinds_of
from .findings import MIN_GROUP, OUTLIER_NOTE, Finding, Floats, Ints, Mask, outlier_findings
from .statistics import robust_scores

OUTLIER_FAULT = 20.0
"""Robust standard deviations from the median that count as a fault."""
MIN_ENERGY_SPREAD = 0.01
"""Minimum robust spread in eV per atom, for rare compositions pooled together."""


class References(NamedTuple):
    """Energies of the elements fitted to the energies of the frames."""

    energies: dict[str, float]
    """In eV; if not unique, the solution closest to free atoms."""
    rank: int
    residual: float
    """RMS residual, eV per atom."""


class EnergyFigures(NamedTuple):
    """Results for the energies; arrays run over the frames."""

    references: References
    residuals: Floats
    """(frames) energies minus reference energies, eV."""
    outliers: Mask
    findings: list[Finding]


def measure_energies(frames: Frames, usable: Ints) -> EnergyFigures:
    """Return reference energies, residuals, outliers and findings."""
    which = kinds_of(frames)
    elements, reference, rank, residuals, _ = fit_reference_energies(frames)
    per_atom = residuals / frames.sizes
    names = {chemical_symbols[z]: e for z, e in zip(elements, reference, strict=True)}
    references = References(names, rank, float(np.sqrt(np.mean(per_atom**2))))
    scores = _energy_scores(residuals, per_atom, which)
    findings = outlier_findings(scores, usable, "energies", OUTLIER_FAULT)
    findings += _about_compositions(frames, int(which.max()) + 1, len(elements), rank)
    return EnergyFigures(references, residuals, scores > OUTLIER_NOTE, findings)


def _energy_scores(residuals: Floats, per_atom: Floats, which: Ints) -> Floats:
    """Return robust deviations, within each composition if it has enough frames."""
    sizes = np.bincount(which)[which]
    scores = np.zeros(len(residuals))
    rare = sizes < MIN_GROUP
    if rare.sum() >= MIN_GROUP:
        scores[rare] = robust_scores(per_atom[rare], MIN_ENERGY_SPREAD)
    for k in np.unique(which[~rare]):
        own = which == k
        scores[own] = robust_scores(residuals[own], 1e-6)
    return np.abs(scores)


def _about_compositions(frames: Frames, n_kinds: int, n_elements: int, rank: int) -> list[Finding]:
    """Report undetermined reference energies, impossibly low energies, and small files."""
    findings = []
    if rank < n_elements:
        message = (
            f"the {n_kinds} composition(s) determine {rank} of {n_elements} reference energies. "
            "This is not an error, but energies of other compositions are unknown up to a constant."
        )
        findings.append(Finding("note", "reference energies", message))
    if len(frames) < MIN_FRAMES_FOR_STIFFNESS:
        message = f"{len(frames)} usable frame(s) are too few to test units and outliers."
        findings.append(Finding("note", "few frames", message))
    bound = lowest_energies(frames)
    low = np.flatnonzero(frames.energies < bound)
    if len(low):
        message = (
            f"energies, {frames.energies[low[0]]:.6g} eV in usable frame {low[0]}, are below the "
            f"lower bound of {bound[low[0]]:.6g} eV for the electrons. They are in a smaller unit; "
            "convert them to eV."
        )
        findings.append(Finding("fault", "low energies", message))
    return findings

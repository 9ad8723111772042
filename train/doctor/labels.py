"""Checks that labels belong to the frames and have the right sign and unit."""

import numpy as np

from ..data import Frames
from .checks import Finding, indices, name_frames
from .consistency import FULL_CORRELATION, MIN_CORRELATION, PotentialTest
from .evidence import judge_units
from .figures import Figures

MIN_EXPLAINED = 0.3
"""Minimum fraction of the squared forces that a pair potential explains. rMD17 has 0.76 to 0.98,
Chignolin 0.75; labels of other frames 0.01."""
MIN_POTENTIAL_CORRELATION = 0.25
"""Minimum correlation of its energies with the labels. rMD17 has 0.48 to 0.95, Chignolin 0.95;
labels of other frames up to 0.10 with 500 frames."""
MIN_VERDICT_FRAMES = 100
"""Number of test frames from which a missing correlation is significant (chance: 0.1)."""
MIN_SUSPECTS, SUSPECT_SHARE = 4, 0.005
"""Number and fraction of frames with inconsistent energies from which labels are considered mixed.
Correct files have two in 300, two in 1000."""
MIN_FORCE = 0.05
"""RMS force component in eV/Å below which frames may be relaxed and the remaining forces noise;
rMD17 has 1.0 to 1.3."""


def judge_labels(frames: Frames, figures: Figures) -> list[Finding]:
    """Check with both tests that labels belong to the frames and have the right sign and unit."""
    findings = _related(figures)
    if findings and figures.rms_force < MIN_FORCE:
        message = f"forces of {figures.rms_force:.2g} eV/Å may be too small for a reliable test."
        findings = [f._replace(severity="note", message=f"{message} {f.message}") for f in findings]
    elif not findings:
        findings = _mixed(figures) + _signs(figures) + judge_units(frames, figures)
    if frames.forces is not None and figures.pairs is None:
        said = "no test of the labels" if figures.potential is None else "only a coarser test"
        message = (
            f"too few frames are similar enough to compare energy differences with forces; {said} "
            "was possible. This is not an error."
        )
        findings.append(Finding("note", "few similar frames", message))
    return findings


def _related(figures: Figures) -> list[Finding]:
    """Report energies or forces that are unrelated to the geometry."""
    pairs, potential = figures.pairs, figures.potential
    if potential is not None and potential.explained < MIN_EXPLAINED:
        if pairs is not None and pairs.correlation >= MIN_CORRELATION:
            return []
        message = (
            "forces are not a function of the positions: a potential fitted to them explains "
            f"{100 * max(0, potential.explained):.1f} % of the forces of other frames (usually at "
            "least 75 %). The forces belong to other frames or atoms; reassign them."
        )
        return [Finding("fault", "shuffled forces", message)]
    by_pairs = pairs is not None and abs(pairs.correlation) < MIN_CORRELATION
    by_potential = potential is not None and abs(potential.correlation) < _least(potential)
    if by_pairs or (pairs is None and by_potential):
        found = []
        if pairs is not None:
            found.append(
                "the correlation of energy differences of similar frames with the work of the "
                f"forces is {pairs.correlation:.2f}"
            )
        if potential is not None:
            found.append(
                "the correlation of the energies of a potential fitted to the forces with the "
                f"labels is {potential.correlation:.2f}"
            )
        message = (
            f"energies are inconsistent with the forces: {', '.join(found)}. The energies belong "
            "to other frames; reassign them."
        )
        return [Finding("fault", "shuffled energies", message)]
    return []


def _least(potential: PotentialTest) -> float:
    """Return the correlation below which the test fails; with few frames it never does."""
    return MIN_POTENTIAL_CORRELATION if potential.n_frames >= MIN_VERDICT_FRAMES else 0.0


def _mixed(figures: Figures) -> list[Finding]:
    """Report files in which part of the energies are inconsistent with the forces."""
    neighbours = figures.neighbours
    if neighbours is not None and len(neighbours.suspects) >= max(
        MIN_SUSPECTS, SUSPECT_SHARE * neighbours.n_frames
    ):
        message = (
            f"the energies of {name_frames(neighbours.suspects)}, of {neighbours.n_frames} tested, "
            "are inconsistent with their forces and those of similar frames. Energies or forces "
            "belong to other frames, a different method or unconverged calculations; reassign or "
            "remove them."
        )
        return [Finding("fault", "mixed labels", message, indices(neighbours.suspects))]
    if figures.pairs is None or abs(figures.pairs.correlation) >= FULL_CORRELATION:
        return []
    message = (
        "the correlation of energy differences of similar frames with the work of the forces is "
        f"only {figures.pairs.correlation:.2f} (usually at least 0.93). Some labels belong to "
        "other frames, a different method or unconverged calculations; see the plot."
    )
    return [Finding("fault", "mixed labels", message)]


def _signs(figures: Figures) -> list[Finding]:
    """Report forces that are energy gradients."""
    pairs, potential = figures.pairs, figures.potential
    if pairs is not None:
        opposed, value = pairs.correlation < 0, pairs.correlation
    elif potential is not None:
        value = potential.correlation
        # For n unrelated frames the correlation is 0 ± 1/√n.
        opposed = value < -max(MIN_POTENTIAL_CORRELATION, 3 / np.sqrt(potential.n_frames))
    else:
        return []
    message = (
        f"forces have the opposite sign: their correlation with the energies is {value:.2f}. The "
        "file contains energy gradients; multiply them by −1."
    )
    return [Finding("fault", "sign of forces", message)] if opposed else []

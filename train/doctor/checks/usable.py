"""Frames that are unusable for other checks: NaN and invalid elements."""

import numpy as np

from lkm_calc.nn import MAX_NUMBER

from ...data import Frames
from .findings import Finding, Ints, indices, name_frames


def find_unusable(frames: Frames) -> tuple[list[Finding], Ints]:
    """Return findings on NaN and invalid elements, and the indices of usable frames."""
    findings = []
    usable = np.ones(len(frames), bool)
    for name in ("positions", "energies", "forces", "cells", "stress"):
        values = getattr(frames, name)
        if values is None:
            continue
        wrong = ~np.isfinite(values).reshape(len(values), -1).all(1)
        # For stress and forces, all NaN means that the frame has no label.
        if name == "stress":
            wrong = np.isinf(values).any((1, 2))
        if name == "forces":
            wrong &= frames.has_forces[frames.atom_frame]
        per_atom = name in ("positions", "forces")
        bad = np.unique(frames.atom_frame[wrong]) if per_atom else np.flatnonzero(wrong)
        usable[bad] = False
        if len(bad):
            message = (
                f"{name} contain NaN or infinity in {name_frames(bad)}. Remove or recompute them."
            )
            findings.append(Finding("fault", "not finite", message, indices(bad)))
    strange = (frames.numbers < 1) | (frames.numbers > MAX_NUMBER)
    bad = np.union1d(frames.atom_frame[strange], np.flatnonzero(frames.sizes < 1))
    usable[bad] = False
    if len(bad):
        message = f"{name_frames(bad)}: no atoms, or atomic numbers outside 1 (H) to 94 (Pu)."
        message += " Check the atomic numbers."
        findings.append(Finding("fault", "elements", message, indices(bad)))
    return findings, np.flatnonzero(usable)


def judge_partial(frames: Frames, usable: Ints) -> list[Finding]:
    """Report the number of frames without forces if others have them."""
    without = np.flatnonzero(~frames.has_forces)
    if not 0 < len(without) < len(frames):
        return []
    message = (
        f"{len(without)} of {len(frames)} frames have no forces: {name_frames(usable[without])}. "
        "Only their energies are used in training."
    )
    return [Finding("note", "frames without forces", message, indices(usable[without]))]

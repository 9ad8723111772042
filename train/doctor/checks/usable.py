"""Frames that no other check can use: NaN, and atoms that are no element."""

import numpy as np

from lkm_calc.nn import MAX_NUMBER

from ...data import Frames
from .findings import Finding, Ints, name_frames


def find_unusable(frames: Frames) -> tuple[list[Finding], Ints]:
    """Return findings on NaN and elements, and the frames free of both."""
    findings = []
    usable = np.ones(len(frames), bool)
    for name in ("positions", "energies", "forces", "cells", "stress"):
        values = getattr(frames, name)
        if values is None:
            continue
        wrong = ~np.isfinite(values).reshape(len(values), -1).all(1)
        # Of stress and forces, NaN throughout stands for a frame without the label.
        if name == "stress":
            wrong = np.isinf(values).any((1, 2))
        if name == "forces":
            wrong &= frames.has_forces[frames.atom_frame]
        per_atom = name in ("positions", "forces")
        bad = np.unique(frames.atom_frame[wrong]) if per_atom else np.flatnonzero(wrong)
        usable[bad] = False
        if len(bad):
            message = (
                f"{name} hold NaN or infinity in {name_frames(bad)}. Remove them, or label anew."
            )
            findings.append(Finding("fault", "not finite", message))
    strange = (frames.numbers < 1) | (frames.numbers > MAX_NUMBER)
    bad = np.union1d(frames.atom_frame[strange], np.flatnonzero(frames.sizes < 1))
    usable[bad] = False
    if len(bad):
        message = f"{name_frames(bad)}: no atoms, or atomic numbers outside 1 (H) to 94 (Pu)."
        findings.append(Finding("fault", "elements", f"{message} Check which array holds them."))
    return findings, np.flatnonzero(usable)


def judge_partial(frames: Frames, usable: Ints) -> list[Finding]:
    """Note how many frames have no forces among frames with them."""
    without = np.flatnonzero(~frames.has_forces)
    if not 0 < len(without) < len(frames):
        return []
    message = (
        f"{len(without)} of {len(frames)} frames have no forces: {name_frames(usable[without])}. "
        "They are trained on by their energies."
    )
    return [Finding("note", "frames without forces", message)]

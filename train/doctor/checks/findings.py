"""Findings of the examination of a data file."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Finding(NamedTuple):
    """A fault or a note."""

    severity: Literal["fault", "note"]
    name: str
    message: str
    """What was found, in which frames, and what to do."""
    frames: tuple[int, ...] = ()
    """Indices in the file of the frames concerned; empty if it concerns all."""


def indices(frames: Ints | Sequence[int]) -> tuple[int, ...]:
    """Return indices of frames, sorted."""
    return tuple(sorted(int(frame) for frame in frames))


def name_frames(frames: Ints | Sequence[int]) -> str:
    """Return the indices of frames as text, only the first few of many."""
    listed = ", ".join(str(int(i)) for i in frames[:5])
    word = "frame" if len(frames) == 1 else "frames"
    return f"{word} {listed}" + (f" and {len(frames) - 5} more" if len(frames) > 5 else "")


MIN_GROUP = 20
"""Minimum number of frames of a composition for its own median and spread."""

OUTLIER_NOTE = 8.0
"""Robust standard deviations from the median that are reported as a note. Energies and logarithms
of the largest forces in all rMD17 files are within 5.1."""


def outlier_findings(scores: Floats, usable: Ints, what: str, fault: float) -> list[Finding]:
    """Report scores above ``fault`` as a fault and above :data:`OUTLIER_NOTE` as a note."""
    remedy = "Inspect them: unconverged calculations, or a different electronic state."
    findings = []
    wrong = scores > fault
    odd = (scores > OUTLIER_NOTE) & ~wrong
    severities: tuple[Literal["fault", "note"], ...] = ("fault", "note")
    for mask, severity in zip((wrong, odd), severities, strict=True):
        if mask.any():
            message = (
                f"{what} of {name_frames(usable[mask])} lie up to {scores[mask].max():.3g} robust "
                f"standard deviations from the median. {remedy}"
            )
            findings.append(Finding(severity, "outliers", message, indices(usable[mask])))
    return findings

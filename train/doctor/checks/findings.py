"""Findings of the examination of a data file, and how they name frames."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Finding(NamedTuple):
    """One thing that is wrong, or worth knowing."""

    severity: Literal["fault", "note"]
    name: str
    message: str
    """What was found, in which frames, and what to do."""


def name_frames(indices: Ints | Sequence[int]) -> str:
    """Name frames, the first few of many."""
    listed = ", ".join(str(int(i)) for i in indices[:5])
    word = "frame" if len(indices) == 1 else "frames"
    return f"{word} {listed}" + (f" and {len(indices) - 5} more" if len(indices) > 5 else "")


MIN_GROUP = 20
"""Frames of a composition from which its own median and spread are taken."""

OUTLIER_NOTE = 8.0
"""Robust standard deviations from the median that are worth a look. Energies of all rMD17 files
keep within 5.1, logarithms of their largest forces too."""


def outlier_findings(scores: Floats, usable: Ints, what: str, fault: float) -> list[Finding]:
    """Report scores that are wrong, above ``fault``, and those worth a look."""
    remedy = "Look at them: a calculation that did not converge, or a state of its own."
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
            findings.append(Finding(severity, "outliers", message))
    return findings

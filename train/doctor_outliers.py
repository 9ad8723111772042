"""Frames far from the others, and how they are reported."""

from typing import Literal

from .doctor_findings import Finding, Floats, Ints, name_frames

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

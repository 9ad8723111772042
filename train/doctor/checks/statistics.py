"""Robust deviations, and regression through the origin."""

import numpy as np

from .findings import Floats


def robust_scores(values: Floats, least: float) -> Floats:
    """Return deviations from the median in units of 1.4826 times the median absolute deviation."""
    deviations = values - np.median(values)
    spread = 1.4826 * float(np.median(np.abs(deviations)))
    scores: Floats = deviations / max(spread, least)
    return scores


def through_zero(x: Floats, y: Floats) -> tuple[float, float]:
    """Return slope and correlation of y against x for a line through the origin."""
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    return xy / nonzero(xx), xy / nonzero(float(np.sqrt(xx * yy)))


def nonzero(value: float) -> float:
    """Return a number that is safe to divide by."""
    return value if abs(value) > 1e-300 else 1e-300

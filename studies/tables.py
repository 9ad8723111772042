"""Common parts of the sections of the report: means over seeds, and tables in Markdown."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mean_and_error(figures: Sequence[Any] | NDArray[np.float64]) -> tuple[Any, Any]:
    """Return mean and standard error over the first axis, that of seeds; NaN of a single one."""
    values = np.array(figures)
    if len(values) < 2:
        return values.mean(0), np.full(values.shape[1:], np.nan)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def written(mean: float, error: float, digits: int, sign: str = "") -> str:
    """Return a mean with its standard error, where there is one; with sign "+", also of gains."""
    return f"{mean:{sign}.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))

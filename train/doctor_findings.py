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

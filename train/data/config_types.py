"""Weights of frames in the loss by config_type, as in GAP and MACE."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ConfigError
from .frames import Frames

DEFAULT = "Default"
"""Entry for all types that are not listed, and for frames without a type."""


def count_config_types(frames: Frames) -> dict[str, int]:
    """Return the number of frames of each config_type; the empty name is for frames without."""
    if frames.config_types is None:
        return {}
    names, counts = np.unique(frames.config_types, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def check_config_types(frames: Frames, weights: Mapping[str, Any], source: str) -> None:
    """Raise a ConfigError if the table contains a type that does not occur in the file.

    Args:
        frames: All frames of the file.
        weights: The table of weights.
        source: Name of the file, for the message.
    """
    present = count_config_types(frames)
    unknown = [name for name in weights if name != DEFAULT and name not in present]
    if not unknown:
        return
    known = [f"{name} ({count})" for name, count in present.items() if name]
    held = f"It contains {', '.join(known)}." if known else "None of its frames has a config_type."
    raise ConfigError(
        f"loss.config_type_weights contains {', '.join(unknown)}, but {source} has no frames of "
        f"that type. {held} Correct or remove the name."
    )


def frame_weights(frames: Frames, weights: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return the weight of each frame, (frames), or None if all are 1."""
    rest = float(weights.get(DEFAULT, 1.0))
    found = np.full(len(frames), rest)
    if frames.config_types is not None:
        found = np.array([float(weights.get(name, rest)) for name in frames.config_types.tolist()])
    return None if (found == 1).all() else found

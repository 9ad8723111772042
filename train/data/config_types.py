"""Weights of frames in the loss by their config_type, as GAP and MACE have them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ConfigError
from .frames import Frames

DEFAULT = "Default"
"""The entry of the table for all types that it does not name, and for frames without a type."""


def count_config_types(frames: Frames) -> dict[str, int]:
    """Return the number of frames of each config_type, those without under an empty name."""
    if frames.config_types is None:
        return {}
    names, counts = np.unique(frames.config_types, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def check_config_types(frames: Frames, weights: Mapping[str, Any], source: str) -> None:
    """Raise a ConfigError if the table names a type that no frame of the file has.

    Args:
        frames: All of the file.
        weights: The table.
        source: The file, for the message.
    """
    present = count_config_types(frames)
    unknown = [name for name in weights if name != DEFAULT and name not in present]
    if not unknown:
        return
    known = [f"{name} ({count})" for name, count in present.items() if name]
    held = f"It holds {', '.join(known)}." if known else "None of its frames has a config_type."
    raise ConfigError(
        f"loss.config_type_weights names {', '.join(unknown)}, and {source} holds no frames of "
        f"that type. {held} Correct the name, or leave it out."
    )


def frame_weights(frames: Frames, weights: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return the weight of each frame, (frames), or None where all are 1."""
    rest = float(weights.get(DEFAULT, 1.0))
    found = np.full(len(frames), rest)
    if frames.config_types is not None:
        found = np.array([float(weights.get(name, rest)) for name in frames.config_types.tolist()])
    return None if (found == 1).all() else found

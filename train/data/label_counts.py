"""Numbers of frames with energies, forces and stress."""

from collections.abc import Mapping

import numpy as np

from .config_types import count_config_types
from .frames import Frames


def count_labels(frames: Frames) -> dict[str, int]:
    """Return the number of frames and of frames with energies, forces and stress."""
    stress = frames.usable_stress
    return {
        "frames": len(frames),
        "energies": int(np.isfinite(frames.energies).sum()),
        "forces": int(frames.has_forces.sum()),
        "stress": 0 if stress is None else int(np.isfinite(stress).all((1, 2)).sum()),
    }


def describe_labels(counts: Mapping[str, int]) -> str:
    """Return the counts as text."""
    total = counts["frames"]
    shares = [
        f"{name} {f'in {count}' if count < total else 'in all'}"
        for name, count in counts.items()
        if name != "frames" and count
    ]
    return f"{total}, {', '.join(shares)}"


def describe_config_types(frames: Frames) -> str:
    """Return the number of frames of each config_type as text, empty if there are none."""
    types = count_config_types(frames)
    return ", ".join(f"{name or 'without'} {count}" for name, count in types.items())

"""The architectures, by name."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..energy import EnergyModel
from .ace import ACE as ACE
from .dimenetpp import DimeNetPP as DimeNetPP
from .mxmnet import MXMNet as MXMNet
from .pamnet import PAMNet as PAMNet

MODELS: Mapping[str, type[EnergyModel]] = MappingProxyType(
    {c.name: c for c in (ACE, DimeNetPP, MXMNet, PAMNet)}
)
"""Every architecture that :func:`build_model` knows."""


def build_model(name: str, **hypers: Any) -> EnergyModel:
    """Return an untrained model, weights drawn from torch's generator.

    Args:
        name: A key of :data:`MODELS`.
        hypers: Arguments of its class that differ from the defaults.

    Raises:
        ValueError: The name or an argument is unknown.
    """
    if name not in MODELS:
        raise ValueError(f"Unknown model {name!r}; choose one of {', '.join(MODELS)}.")
    known = inspect.signature(MODELS[name]).parameters
    unknown = sorted(set(hypers) - set(known))
    if unknown:
        raise ValueError(
            f"{name} has no argument {', '.join(unknown)}; it takes {', '.join(known)}."
        )
    return MODELS[name](**hypers)

"""The architectures, by name, and what every energy model is.

Each architecture is one file, which implements :meth:`EnergyModel.atom_output` and imports no
other.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from .ace import ACE as ACE
from .dimenetpp import DimeNetPP as DimeNetPP
from .energy import AtomOutput as AtomOutput
from .energy import EnergyModel as EnergyModel
from .energy import LayerShares as LayerShares
from .energy import Prediction as Prediction
from .importing import import_architectures as import_architectures
from .isolated import isolation as isolation
from .mxmnet import MXMNet as MXMNet
from .pamnet import PAMNet as PAMNet
from .registry import MODELS as _ARCHITECTURES
from .registry import ArchitectureError as ArchitectureError
from .registry import check_hypers as check_hypers
from .registry import is_registered as is_registered
from .registry import missing_text as missing_text
from .registry import origin_of as origin_of
from .registry import register_model as register_model

for _architecture in (ACE, DimeNetPP, MXMNet, PAMNet):
    register_model(_architecture)

MODELS: Mapping[str, type[EnergyModel]] = _ARCHITECTURES
"""Every architecture that :func:`build_model` knows: those of lkm-calc, those registered by
:func:`register_model`, and those that installed packages offer as entry points of the group
``lkm_calc.models``. Listing the names imports none of them; ``MODELS[name]`` does."""


def build_model(name: str, **hypers: Any) -> EnergyModel:
    """Return an untrained model, weights drawn from torch's generator.

    Args:
        name: A key of :data:`MODELS`.
        hypers: Arguments of its class that differ from the defaults.

    Raises:
        ArchitectureError: The package of the architecture cannot be imported, or its hypers are not
            its arguments.
        ValueError: The name or an argument is unknown.
    """
    if name not in MODELS:
        raise ValueError(
            f"Unknown model {name!r}; choose one of {', '.join(MODELS)}. One of your own must be "
            "registered: import its module first, or install its package."
        )
    cls = MODELS[name]
    known = inspect.signature(cls).parameters
    unknown = sorted(set(hypers) - set(known))
    if unknown:
        raise ValueError(
            f"{name} has no argument {', '.join(unknown)}; it takes {', '.join(known)}."
        )
    model = cls(**hypers)
    check_hypers(model, hypers)
    return model

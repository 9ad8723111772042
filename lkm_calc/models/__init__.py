"""Architectures, their registry, and the base class of all energy models.

Each architecture is one module, which implements :meth:`EnergyModel.atom_output` and does not
import any other architecture.
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
from .importing import module_of as module_of
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
"""Available architectures by name: those of lkm-calc, those registered with
:func:`register_model`, and those that installed packages provide as entry points of the group
``lkm_calc.models``. Listing the names does not import a package; ``MODELS[name]`` does."""


def build_model(name: str, **hypers: Any) -> EnergyModel:
    """Return an untrained model with weights initialised from torch's global generator.

    Args:
        name: A key of :data:`MODELS`.
        hypers: Hyperparameters that differ from the defaults of the architecture.

    Raises:
        ArchitectureError: The package of the architecture cannot be imported, or ``model.hypers``
            does not match the arguments of its class.
        ValueError: The name or a hyperparameter is unknown.
    """
    if name not in MODELS:
        raise ValueError(
            f"Unknown model {name!r}; choose one of {', '.join(MODELS)}. A custom architecture "
            "must be registered: import its module first, or install its package."
        )
    cls = MODELS[name]
    known = inspect.signature(cls).parameters
    unknown = sorted(set(hypers) - set(known))
    if unknown:
        raise ValueError(
            f"{name} has no argument {', '.join(unknown)}; its arguments are {', '.join(known)}."
        )
    model = cls(**hypers)
    check_hypers(model, hypers)
    return model

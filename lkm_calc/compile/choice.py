"""Which way energy and forces of a model are computed."""

from ..models import EnergyModel
from ..potential import ZBLModel
from .kernel_forces import KernelForces
from .kernels import has_kernel
from .programs import ProgramForces
from .protocol import ForceFunction, UncompiledForces


def force_function(
    model: EnergyModel, compile: bool = True, batches: bool = False
) -> ForceFunction:
    """Return the fastest way to energy and forces of a model on its device.

    The variants, and what each falls back to, are listed in :mod:`lkm_calc.compile`.

    Args:
        model: On its device; its weights must stay as they are.
        compile: False computes without compiled code.
        batches: Whether all calls are of several structures at once, which programs of fixed shapes
            do not compute.
    """
    within = model.model if isinstance(model, ZBLModel) else model
    if compile and has_kernel(within):
        return KernelForces(model)
    if compile and not batches:
        return ProgramForces(model)
    return UncompiledForces(model)

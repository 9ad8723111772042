"""Selection of how energy and forces of a model are computed."""

from ..models import EnergyModel
from ..potential import ZBLModel
from .kernel_forces import KernelForces
from .kernels import has_kernel
from .programs import ProgramForces
from .protocol import ForceFunction, UncompiledForces


def force_function(
    model: EnergyModel, compile: bool = True, batches: bool = False
) -> ForceFunction:
    """Return the fastest implementation of energy and forces for a model on its device.

    The implementations and their fallbacks are listed in :mod:`lkm_calc.compile`.

    Args:
        model: On its device; its weights must not change afterwards.
        compile: Whether to use compiled code.
        batches: Whether all calls are for batches of several structures, which programs of fixed
            shapes do not support.
    """
    within = model.model if isinstance(model, ZBLModel) else model
    if compile and has_kernel(within):
        return KernelForces(model)
    if compile and not batches:
        return ProgramForces(model)
    return UncompiledForces(model)

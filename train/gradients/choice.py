"""Selection of how gradients are computed."""

import logging

from torch import nn

from lkm_calc import EnergyModel
from lkm_calc.compile import trains
from lkm_calc.files import CompileError

from ..config import Config
from .compiled import CompiledGradients, Programs, program_key
from .cuda_graphs import CUDAGraphGradients
from .first_order import KernelGradients, LossOfResults
from .protocol import DoubleBackward, GradientFunction

logger = logging.getLogger("lkm_train")


def gradient_function(
    config: Config,
    model: EnergyModel,
    trained: nn.Module,
    plain: DoubleBackward,
    losses_of: LossOfResults,
    isolated: bool,
    programs: Programs | None = None,
) -> GradientFunction:
    """Return the gradient function of a run.

    The implementations and their fallbacks are listed in :mod:`train.gradients`.

    Args:
        config: The run.
        model: The model.
        trained: All trained modules: the model and, if any, learned weights of the teacher.
        plain: Gradients by double backward.
        losses_of: The same losses as a function of the output of the model.
        isolated: Whether the training frames contain isolated atoms, see ``as_trained``.
        programs: Cache of compiled steps, which runs can share.
    """
    if config.run.cuda_graphs:
        return CUDAGraphGradients(plain, list(trained.parameters()))
    if not isolated and trains_by_kernel(model, config):
        try:
            return KernelGradients(model, losses_of, plain)
        except CompileError as error:
            logger.warning("Training without the compiled kernel, which is slower: %s", error)
    if config.run.compile:
        key = (*program_key(config), model.isolated_elements, not isolated)
        return CompiledGradients(trained, plain, key, {} if programs is None else programs)
    return plain


def trains_by_kernel(model: EnergyModel, config: Config) -> bool:
    """Return whether a run uses the kernel of its model."""
    return (
        config.run.kernels == "auto"
        and trains(model)
        and config.loss.lkm_teacher not in ("learned", "error")
        and not config.loss.raw_energies
    )

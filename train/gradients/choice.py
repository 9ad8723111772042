"""Which way the gradients of a run's steps are computed."""

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
    """Return how a run computes the gradients of its steps.

    The variants, and what each falls back to, are listed in :mod:`train.gradients`.

    Args:
        config: The run.
        model: The model.
        trained: All whose weights are trained: the model, maybe with weights of its teacher.
        plain: The gradients by double backward.
        losses_of: The same losses, given what the model says of a batch.
        isolated: Whether atoms of the training frames are isolated ones: see ``as_trained``.
        programs: Where to look for compiled steps of earlier runs and to leave those of this one.
    """
    if config.run.cuda_graphs:
        return CUDAGraphGradients(plain, list(trained.parameters()))
    if not isolated and trains_by_kernel(model, config):
        try:
            return KernelGradients(model, losses_of, plain)
        except CompileError as error:
            logger.warning("Training without the compiled kernel, several times slower: %s", error)
    if config.run.compile:
        key = (*program_key(config), model.isolated_elements, not isolated)
        return CompiledGradients(trained, plain, key, {} if programs is None else programs)
    return plain


def trains_by_kernel(model: EnergyModel, config: Config) -> bool:
    """Tell whether a run uses the kernel of its model."""
    return (
        config.run.kernels == "auto"
        and trains(model)
        and config.loss.lkm_teacher not in ("learned", "error")
        and not config.loss.raw_energies
    )

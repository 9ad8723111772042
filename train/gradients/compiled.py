"""Gradients of a batch from one compiled program of fixed shapes, for training on a CPU."""

import json
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import compile as inductor_compile
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from lkm_calc.files import COMPILER_ERRORS, CompileError, not_compiled

from ..config import Config, to_table
from ..data import Batch, Totals
from .protocol import DoubleBackward, LossFunction, gradient_difference, shapes_of

logger = logging.getLogger("lkm_train")

Program = Callable[..., list[Tensor]]
"""Maps weights, buffers, γ and the tensors of a batch to the losses and the gradients."""

Programs = dict[tuple[object, ...], Program]
"""Programs by a key of everything that is fixed in them."""

MAX_PROGRAMS = 2
"""Maximum number of shapes compiled: that of batches, or of the two kinds of parts of batches."""
TOLERANCE = 1e-3
"""Maximum relative difference from gradients by double backward; float32 round-off is a hundredth
of it."""


class CompiledGradients:
    """A gradient function compiled for the first shapes of batches.

    The losses and their gradients with respect to the weights, which contain second derivatives of
    the energy, are traced into one graph of operations and compiled by torch's Inductor. This needs
    a C++ compiler and takes minutes, so it is only worthwhile for much longer trainings. A program
    is compared with double backward before it is used. Without a compiler, or if the gradients
    differ, a single warning is issued and double backward is used, as for further shapes.

    Args:
        model: All trained modules.
        plain: The same gradients by double backward; provides the losses and γ.
        key: Everything that is fixed in a program except shapes.
        programs: Cache of programs, to which new ones are added. Runs can share it.
    """

    padded = True

    def __init__(
        self,
        model: nn.Module,
        plain: DoubleBackward,
        key: tuple[object, ...],
        programs: Programs,
    ) -> None:
        self.model, self.plain = model, plain
        self.weights, self.buffers = list(model.parameters()), list(model.buffers())
        self.names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        self.key, self.programs = key, programs
        self.compiled = 0
        self.failed = False

    def __call__(self, batch: Batch, totals: Totals) -> Tensor:
        """Add the gradients of a batch whose graph is padded, and return its losses in float64."""
        key = (self.key, shapes_of(batch, totals))
        if key not in self.programs:
            if self.failed or self.compiled >= MAX_PROGRAMS:
                return self.plain(batch, totals)
            try:
                self.programs[key] = self._compiled(batch, totals)
                self.compiled += 1
            except CompileError as error:
                warnings.warn(f"Training without compilation: {error}", stacklevel=2)
                self.failed = True
                return self.plain(batch, totals)
        losses, gradients = self._run(self.programs[key], batch)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
        return losses

    def _run(self, program: Program, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            losses, *gradients = program(*self._arguments(batch))
        return losses, gradients

    def _arguments(self, batch: Batch) -> list[Tensor]:
        weights = [weight.detach() for weight in self.weights]
        return [*weights, *self.buffers, self.plain.gamma, *batch.tensors()]

    def _compiled(self, batch: Batch, totals: Totals) -> Program:
        """Compile for the shapes of a batch.

        Raises:
            CompileError: There is no working compiler, or the program gives different gradients.
        """
        logger.warning("Compiling the training step. This takes minutes for each shape of batches.")
        began = time.perf_counter()
        try:
            traced = make_fx(self._function(batch, totals))(*self._arguments(batch))
            options = {"cpp.dynamic_threads": True}
            inputs: list[Any] = [*self._arguments(batch)]
            program: Program = inductor_compile(traced, inputs, options)
            self._check(program, batch, totals)
        except CompileError:
            raise
        except COMPILER_ERRORS as error:
            raise not_compiled("step", error) from error
        logger.warning("Compiled in %.0f s.", time.perf_counter() - began)
        return program

    def _function(self, batch: Batch, totals: Totals) -> Callable[..., list[Tensor]]:
        """Return losses and gradients as a function of weights, buffers, γ and the batch."""
        step = _Step(self.model, self.plain.losses, batch, totals)

        def function(*arguments: Tensor) -> list[Tensor]:
            first, last = len(self.weights), len(self.names)
            weights = [weight.detach().requires_grad_() for weight in arguments[:first]]
            tensors = [*weights, *arguments[first:last]]
            replaced = {f"model.{n}": t for n, t in zip(self.names, tensors, strict=True)}
            losses = functional_call(step, replaced, arguments[last:])
            gradients = torch.autograd.grad(losses[0], weights, materialize_grads=True)
            return [losses.detach(), *gradients]

        return function

    def _check(self, program: Program, batch: Batch, totals: Totals) -> None:
        """Raise a CompileError if gradients differ from those by double backward."""

        def found(batch: Batch) -> list[Tensor]:
            return self._run(program, batch)[1]

        off, norm = gradient_difference(found, self.plain, self.weights, batch, totals)
        if not off <= TOLERANCE * norm:
            raise CompileError(
                f"the compiled gradients are off by {off:.2g}, at a norm of {norm:.2g}. Please "
                "report this with the versions of torch and of the compiler."
            )


def program_key(config: Config) -> tuple[object, ...]:
    """Return the settings on which a compiled step depends; γ is an input and not included."""
    table = to_table(config)
    loss = {key: value for key, value in table["loss"].items() if not key.startswith("gamma")}
    return json.dumps([table["model"], loss], sort_keys=True), config.run.dtype


class _Step(nn.Module):
    """The losses of a batch as a module, so that ``functional_call`` can replace its weights."""

    def __init__(
        self, model: nn.Module, losses: LossFunction, batch: Batch, totals: Totals
    ) -> None:
        super().__init__()
        self.model = model
        self.losses, self.batch, self.totals = losses, batch, totals

    def forward(self, gamma: Tensor, *tensors: Tensor) -> Tensor:
        batch = self.batch.with_tensors(tensors)
        return torch.stack([part.double() for part in self.losses(batch, self.totals, gamma)])

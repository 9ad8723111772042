"""One optimiser step on a batch, in one process or several."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lkm_calc import EnergyForces
from lkm_calc.compile import pad, unpad

from ..config import Config
from ..data import Batch, GraphFrames, Totals
from ..gradients import (
    DoubleBackward,
    Losses,
    Programs,
    as_trained,
    gradient_function,
    training_loss,
)
from ..report import model_output
from ..state import TrainingState, average_decay
from .parallel import Stop, Workers

AVERAGE_WEIGHT = 0.01
"""Weight of the current step in the running averages of the losses."""
TINY = 1e-30
"""Lower bound of L_KD, to avoid division by zero."""


class Stepper:
    """Performs the steps of a run, without synchronising with a GPU.

    Args:
        state: Training state, updated by each step.
        data: The training frames.
        config: The run.
        team: The processes among which every batch is split.
        total: Number of steps of the whole run.
        programs: Cache of compiled steps, which runs can share.
    """

    def __init__(
        self,
        state: TrainingState,
        data: GraphFrames,
        config: Config,
        team: Workers,
        total: int,
        programs: Programs | None = None,
    ) -> None:
        self.state, self.data, self.config, self.team = state, data, config, team
        self.total = total
        self.model = as_trained(state.model, data)
        self.parameters = list(state.trained.parameters())
        # So that a single program covers every γ, including 0, L_KD is always differentiated.
        self.loss = replace(config.loss, gamma="auto") if config.run.compile else config.loss
        self.gamma = torch.zeros_like(state.loss_sums[0])
        self.plain = DoubleBackward(self.losses, self.gamma)
        isolated = self.model is not state.model
        self.gradients = gradient_function(
            config, state.model, state.trained, self.plain, self.losses_of, isolated, programs
        )

    def step(self, indices: Int[Tensor, " batch"], rate: float, stop: Stop) -> None:
        """Perform one step with the frames ``indices`` and add its losses to the sums."""
        state, options = self.state, self.config.optimiser
        for optimiser in state.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=not self.config.run.cuda_graphs)
        self._set_gamma()
        losses = torch.zeros_like(state.loss_sums)
        mine, totals = self.team.part(indices), self.data.totals(indices)
        counts = self.data.counts(totals)
        for piece in mine.chunk(options.accumulate) if len(mine) else ():
            batch = self.data.batch(piece)._replace(counts=counts)
            if not self.gradients.padded:
                losses += self.gradients(batch, totals)
            elif not self._repeats(totals):
                losses += self.plain(batch, totals)
            else:
                graph = pad(batch.graph, self.data.capacity(piece), self.data.cutoff)
                losses += self.gradients(batch._replace(graph=graph), totals)
        if self.team.size > 1:
            asked = losses.new_full((1,), float(len(stop.signals) > 0))
            self.team.sum([losses, asked, *map(_gradient, self.parameters)])
            stop.agree(asked)
        clip_norm(self.parameters, options.clip_norm)
        for optimiser in state.optimisers:
            optimiser.step()
        state.update_average(average_decay(state.step, self.total, options))
        state.loss_sums += losses
        self._note_losses(losses)

    def _set_gamma(self) -> None:
        """Set γ of this step.

        With "auto", γ L_KD is a fraction of the rest of the loss, where both are running averages
        over the last steps. γ is 0 in the first step, which has no averages yet.
        """
        loss = self.config.loss
        warmed_up = min(1.0, (self.state.step + 1) / max(1, loss.gamma_warmup_steps))
        if loss.gamma == "auto":
            task, mixing = self.state.loss_averages
            self.gamma.copy_(loss.gamma_fraction * warmed_up * task / mixing.clamp_min(TINY))
        else:
            self.gamma.fill_(loss.gamma * warmed_up)

    def _note_losses(self, losses: Float[Tensor, " parts"]) -> None:
        """Update the running averages that determine γ."""
        parts = Losses(*losses)
        task = parts.total - self.gamma * parts.lkm
        self.state.loss_averages.lerp_(torch.stack([task, parts.lkm]), AVERAGE_WEIGHT)

    def _repeats(self, totals: Totals) -> bool:
        """Return whether a CUDA graph or a program should be used for a batch.

        A smaller last batch of an epoch is never compiled, so that which batches are compiled does
        not depend on where a run was stopped.
        """
        whole = self.config.optimiser.batch_size
        return not self.config.run.compile or totals.graphs == whole

    def losses(self, batch: Batch, totals: Totals, gamma: Tensor) -> Losses:
        """Return the differentiable losses of a part of a batch for a value of γ."""
        padded = model_output(self.model, batch, create_graph=True)
        predicted = unpad(padded, len(batch.energies), batch.atoms)
        return training_loss(predicted, batch, self.loss, totals, gamma, self.state.learned)

    def losses_of(self, results: EnergyForces, batch: Batch, totals: Totals) -> Losses:
        """Return the losses of a part of a batch, given the output of the model."""
        return training_loss(results, batch, self.loss, totals, self.gamma, self.state.learned)


def clip_norm(parameters: list[torch.nn.Parameter], limit: float) -> None:
    """Scale the gradients so that their total norm is at most ``limit``.

    On a CPU, this takes a third of the time of torch's function, which has one small operation for
    each parameter.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients or gradients[0].device.type != "cpu":
        torch.nn.utils.clip_grad_norm_(parameters, limit)
        return
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    if not norm <= limit:  # or NaN
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    """Return the gradient of a parameter, zero if this process had no frames of the batch."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad

"""Everything a run needs to continue exactly where it stopped, saved as one file."""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lkm_calc import EnergyModel
from lkm_calc.atomic import replacing

from .config import OptimiserConfig
from .loss import Losses


class StateError(ValueError):
    """A saved training state cannot be continued; the message says why."""


@dataclass
class TrainingState:
    """Weights, averaged weights, optimiser and counters.

    The order of the frames and the learning rate are functions of seed and step, so the step is
    all there is to save of them.
    """

    model: EnergyModel
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    loss_sums: torch.Tensor
    """Sums of the loss and its parts over the present epoch, float64."""
    step: int = 0
    seconds: float = 0.0
    """Time spent in training so far, over all sessions."""
    best: float = math.inf
    """Lowest validation loss so far."""

    @classmethod
    def create(cls, model: EnergyModel, config: OptimiserConfig) -> "TrainingState":
        """Start afresh from a model."""
        average = AveragedModel(model, multi_avg_fn=_warmed_up_average(config.ema_decay))
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        sums = torch.zeros(len(Losses._fields), dtype=torch.float64, device=model.device)
        return cls(model, average, optimiser, sums)

    @property
    def averaged_model(self) -> EnergyModel:
        """The model with the averaged weights."""
        module = self.average.module
        assert isinstance(module, EnergyModel)
        return module

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write the state and what tells the run that it belongs to, whole or not at all."""
        content = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "loss_sums": self.loss_sums,
            "counters": {"step": self.step, "seconds": self.seconds, "best": self.best},
            "identity": identity,
        }
        packed = io.BytesIO()  # torch.save hides the reason when a disk is full
        torch.save(content, packed)
        with replacing(path) as temporary:
            temporary.write_bytes(packed.getbuffer())

    def load(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            StateError: The file is damaged, or belongs to another run.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            different = _differences(content["identity"], identity)
            if not different:
                self.model.load_state_dict(content["model"])
                self.average.load_state_dict(content["average"])
                self.optimiser.load_state_dict(content["optimiser"])
                self.loss_sums.copy_(content["loss_sums"])
                self.step = content["counters"]["step"]
                self.seconds = content["counters"]["seconds"]
                self.best = content["counters"]["best"]
        except Exception as error:  # damaged files raise many kinds
            raise StateError(
                f"{path} is not a readable training state ({error}). Remove its folder to start "
                "the run again."
            ) from error
        if different:
            raise StateError(
                f"{path.parent} holds a run with another configuration: {'; '.join(different)}. "
                "Set run.directory to a new folder, or restore these values to continue the run."
            )


def _warmed_up_average(decay: float) -> Callable[..., None]:
    """Return an exponential average whose memory grows with the steps up to that of ``decay``.

    With a constant decay the random first weights would spoil the first 1/(1 − decay) steps.
    """

    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], n: torch.Tensor) -> None:
        made = int(n)
        get_ema_multi_avg_fn(min(decay, (1 + made) / (10 + made)))(averaged, current, n)

    return update


def _differences(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Describe each key whose value differs."""
    found = []
    for key in sorted(set(saved) | set(wanted)):
        name = f"{prefix}{key}"
        old, new = saved.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name} was {old!r}, is {new!r}")
    return found


def learning_rate(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """Return the rate of a step: linear warm-up, then a cosine down to the final fraction."""
    peak, warmup = config.learning_rate, min(config.warmup_steps, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return peak * (config.final_fraction + (1 - config.final_fraction) * cosine)

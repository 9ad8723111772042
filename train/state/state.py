"""Training state, from which a run can be resumed exactly, saved as one file."""

import copy
import io
import logging
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lkm_calc import EnergyModel
from lkm_calc.files import replacing, sealed, unsealed

from ..config import OptimiserConfig, told_of_old
from ..formats import DAMAGE
from ..gradients import LearnedTeacher, Losses
from .optimiser import make_optimisers

logger = logging.getLogger("lkm_train")

FORMAT_VERSION = 2
"""Version of training states written by this code. Version 2 added the checksum; states without a
version are older."""


class StateError(ValueError):
    """A run cannot be resumed from its training state; the message says why."""


@dataclass
class Counters:
    """Counters and other scalars of a run."""

    step: int = 0
    seconds: float = 0.0
    """Total training time so far, including earlier parts of a resumed run."""
    best: float = math.inf
    """Lowest validation score so far."""
    since_best: int = 0
    """Validations since the lowest score."""
    since_cut: int = 0
    """Validations since the lowest score or the last reduction of the learning rate."""
    rate_factor: float = 1.0
    """Factor on the learning rate from reductions on plateaus."""


@dataclass
class TrainingState:
    """Weights, averaged weights, optimisers and counters.

    The order of the frames, and the learning rate except for reductions on plateaus, are functions
    of seed and step and need not be saved.
    """

    model: EnergyModel
    averaged_model: EnergyModel
    """Model with averaged weights, which is validated and saved."""
    optimisers: list[torch.optim.Optimizer]
    loss_sums: torch.Tensor
    """Sums of the loss and its terms over the current epoch, float64."""
    loss_averages: torch.Tensor
    """Running averages of the loss without LKM and of L_KD, float64."""
    counters: Counters
    learned: LearnedTeacher | None = None
    """Learned weights of the LKM teacher, if any; trained with the model but not part of it."""

    @classmethod
    def create(
        cls,
        model: EnergyModel,
        config: OptimiserConfig,
        learned: LearnedTeacher | None = None,
        *,
        compiled: bool = True,
    ) -> "TrainingState":
        """Create the initial state for a model and, if any, learned weights of the teacher.

        For ``compiled`` see :class:`train.state.Muon`.
        """
        optimisers = make_optimisers(trained(model, learned), config, compiled)
        sums = torch.zeros(len(Losses._fields), dtype=torch.float64, device=model.device)
        averages = sums.new_zeros(2)
        return cls(model, copy.deepcopy(model), optimisers, sums, averages, Counters(), learned)

    @property
    def trained(self) -> nn.ModuleList:
        """All modules trained by the optimisers."""
        return trained(self.model, self.learned)

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return self.counters.step

    def update_average(self, decay: float) -> None:
        """Set the averaged weights to decay · average + (1 − decay) · weights."""
        get_ema_multi_avg_fn(decay)(*self._averaged_and_current, 1)

    @cached_property
    def _averaged_and_current(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Weights of the averaged model and of the model, cached because collecting is slow."""
        return list(self.averaged_model.parameters()), list(self.model.parameters())

    def note_score(self, score: float, config: OptimiserConfig) -> bool:
        """Record a validation score and return whether it is the lowest so far.

        The learning rate is reduced after ``plateau_patience`` validations without improvement.
        """
        counters = self.counters
        is_best = score < counters.best
        if is_best:
            counters.best, counters.since_best, counters.since_cut = score, 0, 0
            return True
        counters.since_best += 1
        counters.since_cut += 1
        if config.schedule == "plateau" and counters.since_cut >= config.plateau_patience:
            counters.since_cut = 0
            counters.rate_factor *= config.plateau_factor
        return False

    def stopped_early(self, config: OptimiserConfig) -> bool:
        """Return whether early stopping is due."""
        return 0 < config.early_stopping <= self.counters.since_best

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write the state and the identity of the run atomically.

        A checksum is appended to torch's archive; ``torch.load`` ignores it.
        """
        content = {
            "format_version": FORMAT_VERSION,
            "model": self.model.state_dict(),
            "average": self.averaged_model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "loss_sums": self.loss_sums,
            "loss_averages": self.loss_averages,
            "learned": self.learned.state_dict() if self.learned else None,
            "counters": asdict(self.counters),
            "identity": identity,
        }
        packed = io.BytesIO()  # torch.save hides the reason when a disk is full
        torch.save(content, packed)
        with replacing(path) as temporary:
            temporary.write_bytes(sealed(packed.getvalue()))

    def load(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Resume from a saved state.

        Raises:
            StateError: The file is damaged, or belongs to a run with another configuration.
        """
        content = _content(path)
        saved = told_of_old(content["identity"])
        saved = {k: {n: v for n, v in saved[k].items() if n in identity[k]} for k in identity}
        wanted = identity.get("optimiser", {})
        restart = wanted.get("restart_epoch", 0)
        prolonged = restart > 0 and saved["optimiser"].get("epochs") == restart
        if prolonged:
            saved["optimiser"] |= {k: wanted[k] for k in ("epochs", "restart_epoch")}
        different = _differences(saved, identity)
        if different:
            raise StateError(
                f"{path.parent} contains a run with another configuration: {'; '.join(different)}. "
                "Restore these values to continue the run, or set run.directory to a new folder; "
                "with --finetune MODEL a new run starts from the model of this one."
            )
        try:
            self._restore(content)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise StateError(
                f"{path} does not fit this run ({type(error).__name__}: {error}). It was written "
                "by another version of lkm-calc; continue with that version, or set run.directory "
                "to a new folder."
            ) from error
        if prolonged:
            self.counters.since_best = self.counters.since_cut = 0

    def _restore(self, content: Mapping[str, Any]) -> None:
        """Restore everything written by :meth:`save`."""
        self.model.load_state_dict(content["model"])
        self.averaged_model.load_state_dict(content["average"])
        # Older states have a single optimiser.
        states = content.get("optimisers") or [content["optimiser"]]
        for optimiser, saved_state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(saved_state)
        self.loss_sums.copy_(content["loss_sums"])
        if "loss_averages" in content:  # missing in states older than γ = "auto"
            self.loss_averages.copy_(content["loss_averages"])
        if self.learned:
            self.learned.load_state_dict(content["learned"])
        self.counters = Counters(**content["counters"])


def _content(path: Path) -> dict[str, Any]:
    """Return the validated content of a training state.

    Raises:
        StateError: The file is damaged or not a training state.
        PermissionError: The file is not readable.
    """
    try:
        content = _read(path)
    except PermissionError:
        raise
    except (*DAMAGE, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise StateError(_UNREADABLE.format(path, error)) from error
    if not (isinstance(content, dict) and content.keys() >= {"model", "identity", "counters"}):
        raise StateError(_UNREADABLE.format(path, "it is some other PyTorch file"))
    sections = content["identity"]
    if not (isinstance(sections, dict) and all(isinstance(s, dict) for s in sections.values())):
        raise StateError(_UNREADABLE.format(path, f"identity is {sections!r}"))
    return content


_UNREADABLE = "{} is not a readable training state ({}). Remove its folder to start the run again."


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a training state.

    Raises:
        StateError: The file does not match its checksum.
        Exception: The file is damaged in another way.
    """
    packed, intact = unsealed(path.read_bytes())
    content: dict[str, Any] = {}
    if intact is None:
        _check_archive(packed, path)
    if intact is not False:  # do not unpickle damaged data
        content = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    if not intact and (intact is False or "format_version" in content):
        raise StateError(
            f"{path} does not match its checksum: it was damaged. Restore a copy of it, or remove "
            "its folder to start the run again."
        )
    if intact is None:
        logger.warning("%s was written by an older version, without a checksum.", path)
    return content


def _check_archive(packed: bytes, path: Path) -> None:
    """Raise a StateError if an entry of torch's zip archive does not match its CRC-32.

    torch.load does not check them. If an entry is marked as a folder, it reads nothing and returns
    uninitialised memory.
    """
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        folders = [one.filename for one in archive.infolist() if one.external_attr & _FOLDER]
        damaged = archive.testzip() or next(iter(folders), None)
    if damaged is not None:
        raise StateError(_UNREADABLE.format(path, f"its entry {damaged} is damaged"))


_FOLDER = 0x10
"""Attribute of folders in zip archives."""


def trained(model: EnergyModel, learned: LearnedTeacher | None) -> nn.ModuleList:
    """Return all trained modules as one."""
    return nn.ModuleList([model] if learned is None else [model, learned])


def _differences(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Return a description of each key whose value differs."""
    found = []
    for key in sorted(set(saved) | set(wanted)):
        name = f"{prefix}{key}"
        old, new = saved.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name} was {old!r}, is {new!r}")
    return found


def restart_step(total_steps: int, config: OptimiserConfig) -> int:
    """Return the step at which the schedule restarts, or 0 without a restart."""
    return total_steps // config.epochs * config.restart_epoch


def swa_start(total_steps: int, config: OptimiserConfig) -> int:
    """Return the step at which SWA starts; the total number of steps without SWA."""
    return total_steps - round(config.swa_fraction * total_steps)


def average_decay(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """Return the decay of the averaged weights after a step, counted from 0.

    The decay of the exponential moving average increases to ``ema_decay``; with a constant decay,
    the random initial weights would dominate for the first 1/(1 − decay) steps. In the SWA phase,
    the average is the mean of the weights since its start (Izmailov et al. 2018, arXiv:1803.05407).
    """
    start = swa_start(total_steps, config)
    if step >= start:
        return (step - start) / (step - start + 1)
    return 0.0 if step == 0 else min(config.ema_decay, (1 + step) / (10 + step))


RESTART = 0.5
"""Peak learning rate after a restart relative to the first one."""


def learning_rate(
    step: int, total_steps: int, config: OptimiserConfig, rate_factor: float = 1.0
) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule.

    With ``restart_epoch``, the schedule first runs as if training ended there, then is repeated
    with half the learning rate over the remaining steps.

    Args:
        step: Counted from 0.
        total_steps: Number of steps of the whole run.
        config: Peak, warm-up and schedule.
        rate_factor: Factor from reductions on plateaus so far.
    """
    peak, restart = config.learning_rate, restart_step(total_steps, config)
    if step < restart:
        total_steps = restart
    elif restart:
        peak, step, total_steps = peak * RESTART, step - restart, total_steps - restart
    end = swa_start(total_steps, config)
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= end:
        return peak * config.swa_rate
    if config.schedule == "plateau":
        return peak * max(rate_factor, config.final_fraction)
    if config.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, end - warmup)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return peak * (config.final_fraction + (1 - config.final_fraction) * cosine)

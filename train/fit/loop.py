"""The training loop: from a configuration to a model file."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lkm_calc import save_model
from lkm_calc.runtime import (
    choose_device,
    fast_matmul,
    hide_progress,
    only_process,
    own_settings,
    shows_progress,
    stop_signals,
    tf32_matmul,
    threads_for,
)

from ..config import Config, ConfigError
from ..data import (
    GraphFrames,
    count_labels,
    describe_labels,
    epoch_order,
    frame_weights,
    isolated_atoms,
    structures_of,
)
from ..formats import read_data
from ..gradients import Losses, Programs, learned_teacher
from ..report import Errors, Held, calibrate_file, errors_of, predict
from ..state import StateError, TrainingState, learning_rate
from .centring import centre_energies
from .duration import duration, epochs_of_run, epochs_within
from .parallel import Stop, Workers, own_device, workers
from .prepare import check_elements, check_labels, prepare_model
from .pretraining import pretraining_run
from .record import Record
from .sets import read_sets
from .step import Stepper

logger = logging.getLogger("lkm_train")


PRETRAINING_SHARE = 0.5
"""Fraction of the time of a run for sampling and pretraining, if the time is given."""


class Epoch(NamedTuple):
    """A finished epoch."""

    number: int
    """Counted from one."""
    learning_rate: float
    """Learning rate of its last step."""
    losses: dict[str, float]
    """Means of the loss and its terms."""
    seconds_left: float
    """Estimated time to the end of the run."""


class TrainingDivergedError(RuntimeError):
    """The loss or a validation error became NaN or infinite."""


@own_settings
@torch.enable_grad()
def fit(
    config: Config,
    stop_after: int | None = None,
    programs: Programs | None = None,
    seconds: float | None = None,
) -> Path | None:
    """Train a model, continuing the run in ``run.directory`` if there is one.

    With ``pretraining.calculator``, the model is first pretrained in ``run.directory/pretraining``.

    On SIGINT or SIGTERM the current step is finished, the state is saved and the function returns.
    The same call continues the run; on a CPU the resulting weights are bitwise identical to those
    of an uninterrupted run. With torchrun, every batch is split among the processes, and the first
    process writes the files.

    Args:
        config: The run.
        stop_after: Stop in the same way after this total number of steps.
        programs: Cache of compiled steps, which runs can share. Which batches are compiled, and
            therefore the round-off, then depends on the earlier runs.
        seconds: Train for the number of epochs that takes this time instead of
            ``optimiser.epochs``, half of it for pretraining. A run that is continued keeps its
            number of epochs.

    Returns:
        The path of the finished model, ``model.safetensors``, or None if stopped before the end.

    Raises:
        ConfigError: The device or the model is not available.
        DataError: The data cannot be used.
        FolderInUseError: Another process trains in the folder.
        StateError: The folder holds a run of another configuration.
        TrainingDivergedError: The loss became NaN or infinite.
    """
    device = device_of(config.run.device, "run.device")
    if device.type != "cuda" and (config.run.cuda_graphs or config.run.tf32):
        raise ConfigError(f"run.cuda_graphs and run.tf32 need a CUDA device; this is {device}.")
    if device.type == "cuda" and config.run.compile:
        raise ConfigError("run.compile is for the CPU; on a GPU use run.cuda_graphs.")
    with workers(device) as team, _alone_in(config.run.directory, team):
        start = None
        if config.pretraining.calculator:
            began = time.perf_counter()
            first = pretraining_run(config, device, team)
            if first is None:
                return None
            if seconds is not None:
                share = PRETRAINING_SHARE * seconds - (time.perf_counter() - began)
                first = _lasting(first, max(share, 0.0), device, team)
            start = _Run(first, device, team, programs).fit(None)
            if start is None:
                return None
            logger.info("Pretraining is finished: %s", start)
            if seconds is not None:
                seconds = max(seconds - (time.perf_counter() - began), 0.0)
        if seconds is not None:
            config = _lasting(config, seconds, device, team, start)
        return _Run(config, device, team, programs, start).fit(stop_after)


def _lasting(
    config: Config,
    seconds: float,
    device: torch.device,
    team: Workers,
    start: Path | None = None,
) -> Config:
    """Return the configuration with the number of epochs that takes a given time."""
    epochs = epochs_of_run(config.run.directory)
    if epochs is None:
        run = _Run(config, device, team, None, start)
        with fast_matmul(), threads_for(run.rows()), tf32_matmul(config.run.tf32):
            epochs = epochs_within(seconds, run.state, run.data, run.validation, config, team)
        logger.info("%d epochs take about %s", epochs, duration(seconds))
    return dataclasses.replace(
        config, optimiser=dataclasses.replace(config.optimiser, epochs=epochs)
    )


def _alone_in(directory: str, team: Workers) -> AbstractContextManager[None]:
    """Lock the folder against other runs, in the first process."""
    return only_process(Path(directory)) if team.first else nullcontext()


class _Run:
    """Data, training state and output of a run."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        team: Workers,
        programs: Programs | None,
        start: Path | None = None,
    ) -> None:
        sets = read_sets(config)
        test = read_data(config.data.test, config.data) if config.data.test else None
        self.team, self.programs = team, programs
        self.config = config = dataclasses.replace(config, data=sets.options)
        self.record = Record(config, sets.isolated, start)
        self.split, chosen, held_out = sets.split, sets.train, sets.validation
        check_labels(chosen, config)
        model = prepare_model(config, chosen, sets.isolated.energies, start).to(device)
        if config.data.validation:
            check_elements(model, held_out, config.data.validation)
        self.held = Held("validation", held_out, self.split.validation)
        """The frames on which the finished model is measured."""
        if sets.test is not None:
            self.held = Held("test", sets.test, self.split.test)
            check_elements(model, sets.test, "The test frames")
        if test is not None:
            self.record.tested = isolated_atoms(test, config.data.test)
            structures_of(test, config.data.test)  # raises if there are none
            self.held = Held.from_file("test", test)
            check_elements(model, self.held.frames, config.data.test)
        learned = learned_teacher(config.loss, model)
        compiled = config.run.kernels == "auto"
        self.state = TrainingState.create(model, config.optimiser, learned, compiled=compiled)
        if self.record.state.exists():
            self.state.load(self.record.state, self.record.identity)
            self._look_for_best()
        if team.from_first(float(self.state.step), device) != self.state.step:
            raise StateError(
                f"The training state in {config.run.directory} is at step {self.state.step} for "
                "one process and at another step for the first process. All processes must see "
                "the same folder."
            )
        self.data = GraphFrames(
            chosen, model, device, frame_weights(chosen, config.loss.config_type_weights)
        )
        self.record.labels = {"train": count_labels(chosen), "validation": count_labels(held_out)}
        for name, counts in self.record.labels.items():
            logger.info("%s frames: %s", name, describe_labels(counts))
        self.validation = GraphFrames(held_out, model, device)
        if self.data.forces is not None and self.validation.forces is None:
            logger.warning(
                "No validation frame has forces: the best model is selected by energies only, and "
                "force errors are unknown. Choose validation frames with forces: more of them "
                "(data.n_validation), others (run.seed), or a file (data.validation)."
            )
        self.per_epoch = -(-len(self.data) // config.optimiser.batch_size)
        self.total = config.optimiser.epochs * self.per_epoch

    def _look_for_best(self) -> None:
        """Reset the best validation score if the file of the best model is missing."""
        counters, best = self.state.counters, self.record.best
        if np.isfinite(counters.best) and not best.exists():
            logger.warning(
                "%s, the best model so far, is missing: only later models are considered.", best
            )
            counters.best, counters.since_best, counters.since_cut = np.inf, 0, 0

    def fit(self, stop_after: int | None) -> Path | None:
        """Train until the end or until stopped, and write the output files."""
        state, first = self.state, self.team.first
        if first:
            self.record.begin(self.split, state.step)
        end = self.total if stop_after is None else min(stop_after, self.total)
        with (
            fast_matmul(),
            threads_for(self.rows()),
            tf32_matmul(self.config.run.tf32),
        ):
            with stop_signals() as stopped:
                for epoch in self._epochs(end, Stop(stopped, self.team)):
                    self._validate(epoch)
            self._check_finite(state.loss_sums[0].item())
            finished = state.step == self.total or state.stopped_early(self.config.optimiser)
            if finished and not np.isfinite(state.counters.best):
                self._measure("the last weights")
            if first:
                state.save(self.record.state, self.record.identity)
                if finished:
                    self._settle_energies()
                    self._calibrate()
                    self.record.finish(state, self.validation, self.held)
            self.team.wait()
            return self.record.best if finished else None

    def rows(self) -> int:
        """Return the mean number of edges per batch."""
        edges = self.data.edge_index.shape[1]
        return edges * self.config.optimiser.batch_size // len(self.data)

    def _calibrate(self) -> None:
        """Calibrate the guards of the best model, if there are forces."""
        if self.validation.forces is not None:
            size = self.config.run.eval_batch_size
            calibrate_file(self.record.best, self.validation, self.data, size)

    def _epochs(self, end: int, stop: Stop) -> Iterator[Epoch]:
        """Train up to step ``end``, yielding at the end of each epoch."""
        state, config, counters = self.state, self.config, self.state.counters
        options = config.optimiser
        stepper = Stepper(state, self.data, config, self.team, self.total, self.programs)
        order = None
        began = session = time.perf_counter()
        first = state.step
        with tqdm(
            total=self.total,
            initial=state.step,
            unit="step",
            smoothing=0.02,
            disable=hide_progress() if self.team.first else True,
        ) as bar:
            while state.step < end and not stop and not state.stopped_early(options):
                epoch, position = divmod(state.step, self.per_epoch)
                if order is None or position == 0:
                    order = epoch_order(len(self.data), config.run.seed, epoch)
                indices = order.split(options.batch_size)[position]
                rate = learning_rate(state.step, self.total, options, counters.rate_factor)
                stepper.step(indices, rate, stop)
                counters.step += 1
                bar.update()
                if position == self.per_epoch - 1:
                    means = (state.loss_sums / self.per_epoch).tolist()  # synchronises
                    counters.seconds += time.perf_counter() - began
                    state.loss_sums.zero_()
                    losses = {f"train_{n}": v for n, v in zip(Losses._fields, means, strict=True)}
                    self._check_finite(means[0])
                    elapsed = time.perf_counter() - session
                    left = elapsed * (self.total - state.step) / (state.step - first)
                    yield Epoch(epoch + 1, rate, losses, left)
                    began = time.perf_counter()
            counters.seconds += time.perf_counter() - began

    def _validate(self, epoch: Epoch) -> None:
        """Validate the averaged weights at the end of an epoch, log, and save the state."""
        config, state = self.config, self.state
        row: dict[str, Any] = {
            "step": state.step,
            "epoch": epoch.number,
            "learning_rate": epoch.learning_rate,
            **epoch.losses,
            "seconds": round(state.counters.seconds, 1),
        }
        last = epoch.number == config.optimiser.epochs
        if epoch.number % config.run.validate_every == 0 or last:
            label = f"epoch {epoch.number} of {config.optimiser.epochs}"
            row |= self._measure(f"{label}, {duration(epoch.seconds_left)} left")
        if self.team.first:
            self.record.log(row)
            if epoch.number % config.run.checkpoint_every == 0:
                state.save(self.record.state, self.record.identity)

    def _measure(self, label: str) -> dict[str, float]:
        """Return the validation errors, and save the model if it is the best so far.

        The first process validates and broadcasts the score.
        """
        config, state, first = self.config, self.state, self.team.first
        score, figures = 0.0, {}
        if first:
            size = config.run.eval_batch_size
            self._settle_energies()
            predictions = predict(state.averaged_model, self.validation, size)
            errors = errors_of(predictions)
            figures = {f"validation_{name}": value for name, value in errors.figures().items()}
            figures |= {f"layers_{n}": v for n, v in predictions.layers._asdict().items()}
            score = validation_score(errors, config)
        score = self.team.from_first(score, self.data.device)
        self._check_finite(score)
        if state.note_score(score, config.optimiser) and first:
            provenance = self.record.provenance(state, self.validation, errors)
            save_model(state.averaged_model, self.record.best, provenance)
        if first and not shows_progress():  # where no progress bar is drawn
            text = ", ".join(f"{name} {value:.4g}" for name, value in errors.figures().items())
            logger.info("%s: %s", label, text)
        return figures

    def _settle_energies(self) -> None:
        """Fit constant energy shifts of the averaged weights, including those of isolated atoms.

        They start from the energies of the model that is trained, which do not change, so that
        they depend on the weights alone.
        """
        model, config = self.state.averaged_model, self.config
        for name in ("reference_energies", "binding_energies"):
            getattr(model, name).copy_(getattr(self.state.model, name))
        model.measure_isolated_atoms()
        if config.loss.energy > 0 and not config.loss.raw_energies:
            centre_energies(model, self.data, config.run.eval_batch_size)

    def _check_finite(self, value: float) -> None:
        """Raise TrainingDivergedError if a loss or an error is not finite."""
        options = self.config.optimiser
        if not np.isfinite(value):
            raise TrainingDivergedError(
                f"The loss or the validation error became {value}. The last saved state is kept. "
                f"Reduce optimiser.learning_rate (now {options.learning_rate:g}) or "
                f"optimiser.clip_norm (now {options.clip_norm:g}) in a new run.directory."
            )


def fit_members(config: Config, members: int, seconds: float | None = None) -> list[Path] | None:
    """Train a committee: runs with different seeds, in ``run.directory/member-1`` and so on.

    Member k has the seed ``run.seed`` + k − 1, which determines initial weights, split and order of
    the frames.

    Args:
        config: Configuration of the first member.
        members: Number of members.
        seconds: Total time for all members, see :func:`fit`.

    Returns:
        The paths of the models, or None if stopped before the end.

    Raises:
        ConfigError: ``members`` is below 2; otherwise as for :func:`fit`.
    """
    if members < 2:
        raise ConfigError(f"--members is {members}; it must be at least 2.")
    paths = []
    for k in range(members):
        folder = str(Path(config.run.directory) / f"member-{k + 1}")
        run = dataclasses.replace(config.run, directory=folder, seed=config.run.seed + k)
        share = None if seconds is None else seconds / members
        path = fit(dataclasses.replace(config, run=run), seconds=share)
        if path is None:
            return None
        paths.append(path)
    return paths


def device_of(name: str, option: str) -> torch.device:
    """Return the device of a name, or raise a ConfigError that names the option.

    With several processes on a machine, "cuda" and "auto" assign a different GPU to each.
    """
    try:
        return choose_device(own_device(name))
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def validation_score(errors: Errors, config: Config) -> float:
    """Return the sum of mean absolute errors (eV, eV/Å, eV/Å³), weighted as in the loss.

    The model with the lowest score is the best model, independent of the kind of loss.
    """
    loss = config.loss
    energy = errors.energy_per_atom_mae if loss.energy_per_atom else errors.energy_mae
    terms = (
        (loss.energy, energy),
        (loss.forces, errors.force_mae),
        (loss.stress, errors.stress_mae),
    )
    return sum(weight * error for weight, error in terms if weight and error is not None) / 1000

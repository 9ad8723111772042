"""The training loop: from a configuration to a model file."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lkm_calc import EnergyModel, build_model, energy_and_forces, save_model
from lkm_calc.device import choose_device
from lkm_calc.precision import fast_matmul

from .config import Config, ConfigError
from .evaluate import Errors, errors_of, predict
from .frames import DataError, Frames, random_split
from .loader import GraphFrames, epoch_order
from .loss import Losses, training_loss
from .md17 import read_md17
from .record import Record
from .state import TrainingState, learning_rate


class Epoch(NamedTuple):
    """A finished epoch."""

    number: int
    """Counted from one."""
    learning_rate: float
    """Of its last step."""
    losses: dict[str, float]
    """The mean of the loss and of its parts."""


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number."""


def fit(config: Config, stop_after: int | None = None) -> Path | None:
    """Train a model, continuing the run in ``run.directory`` if there is one.

    SIGINT and SIGTERM finish the step, save the state and return; the same call goes on from
    there, on the CPU to the same weights, bit for bit, as if it had not stopped.

    Args:
        config: The run.
        stop_after: Stop in the same way once this many steps have been made in all.

    Returns:
        The path of the finished model, ``model.safetensors``, or None if stopped before the end.

    Raises:
        ConfigError: The device or the model cannot be had.
        DataError: The data cannot be used.
        StateError: The folder holds a run of another configuration.
        TrainingDivergedError: The loss became NaN or infinite.
    """
    device = device_of(config.run.device, "run.device")
    options = (config.data.labels, config.data.check_units)
    frames = read_md17(config.data.train, *options)
    test = read_md17(config.data.test, *options) if config.data.test else None
    record = Record(config)
    split = random_split(
        len(frames), config.data.n_train, config.data.n_validation, config.run.seed
    )
    model = prepare_model(config, frames.select(split.train)).to(device)
    if test is not None:
        check_elements(model, test, config.data.test)
    state = TrainingState.create(model, config.optimiser)
    if record.state.exists():
        state.load(record.state, record.identity)
    record.begin(split, state.step)

    data = GraphFrames(frames.select(split.train), model.cutoff, device)
    validation = GraphFrames(frames.select(split.validation), model.cutoff, device)
    total = config.optimiser.epochs * steps_per_epoch(data, config)
    end = total if stop_after is None else min(stop_after, total)
    with fast_matmul():
        with _stop_signals() as stopped:
            for epoch in _epochs(state, data, config, total, end, stopped):
                _validate(state, validation, epoch, record)
        _check_finite(state.loss_sums[0].item(), config)
        state.save(record.state, record.identity)
        return record.finish(state, validation, test) if state.step == total else None


def device_of(name: str, option: str) -> torch.device:
    """Return the device of a name, or raise a ConfigError that names the option it came from."""
    try:
        return choose_device(name)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def check_elements(model: EnergyModel, frames: Frames, source: str) -> None:
    """Raise a DataError if the model was not trained on an element of the frames."""
    try:
        model.check_elements(np.unique(frames.numbers))
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def steps_per_epoch(data: GraphFrames, config: Config) -> int:
    """Return the number of batches of an epoch, the last one possibly smaller."""
    return -(-len(data) // config.optimiser.batch_size)


def prepare_model(config: Config, frames: Frames) -> EnergyModel:
    """Build the model and set its energy scale, reference energies and elements from frames."""
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's generator stays where it is
            torch.default_generator.manual_seed(config.run.seed)
            model = build_model(config.model.name, **config.model.hypers)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.hypers cannot be used: {error}") from error
    model.to(getattr(torch, config.run.dtype))
    elements, reference = reference_energies(frames)
    scale = float(np.sqrt(np.mean(frames.forces**2)))
    model.calibrate(scale, dict(zip(elements, reference, strict=True)), elements)
    return model


def reference_energies(frames: Frames) -> tuple[list[int], list[float]]:
    """Return elements and their energies in eV, by least squares on the compositions, float64.

    The least-squares solution of smallest norm: with one composition only, it gives the mean
    energy exactly, shared among the elements in proportion to their counts.
    """
    elements, column = np.unique(frames.numbers, return_inverse=True)
    counts = np.zeros((len(frames), len(elements)))
    np.add.at(counts, (np.repeat(np.arange(len(frames)), frames.sizes), column), 1)
    solution, *_ = np.linalg.lstsq(counts, frames.energies, rcond=None)
    return elements.tolist(), solution.tolist()


def _epochs(
    state: TrainingState,
    data: GraphFrames,
    config: Config,
    total: int,
    end: int,
    stopped: list[int],
) -> Iterator[Epoch]:
    """Train up to the step ``end`` of ``total``, yielding at the end of each epoch."""
    per_epoch = steps_per_epoch(data, config)
    order = None
    began = time.perf_counter()
    with tqdm(total=total, initial=state.step, unit="step", smoothing=0.02) as bar:
        while state.step < end and not stopped:
            epoch, position = divmod(state.step, per_epoch)
            if order is None or position == 0:
                order = epoch_order(len(data), config.run.seed, epoch).to(data.device)
            indices = order.split(config.optimiser.batch_size)[position]
            rate = learning_rate(state.step, total, config.optimiser)
            state.loss_sums += torch.stack(_step(state, data, indices, rate, config)).double()
            state.step += 1
            bar.update()
            if position == per_epoch - 1:
                state.seconds += time.perf_counter() - began
                means = (state.loss_sums / per_epoch).tolist()
                state.loss_sums.zero_()
                losses = {f"train_{n}": v for n, v in zip(Losses._fields, means, strict=True)}
                _check_finite(means[0], config)
                yield Epoch(epoch + 1, rate, losses)
                began = time.perf_counter()
        state.seconds += time.perf_counter() - began


def _step(
    state: TrainingState, data: GraphFrames, indices: torch.Tensor, rate: float, config: Config
) -> Losses:
    """Make one optimiser step and return its losses, on the device."""
    graph, energies, forces = data.batch(indices)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    predicted = energy_and_forces(state.model, graph, create_graph=True)
    losses = training_loss(predicted, energies, forces, config.loss)
    state.optimiser.zero_grad()
    losses.total.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optimiser.clip_norm)
    state.optimiser.step()
    state.average.update_parameters(state.model)
    return Losses(*(part.detach() for part in losses))


def _check_finite(value: float, config: Config) -> None:
    """Raise TrainingDivergedError if a loss or an error is not a number."""
    if not np.isfinite(value):
        raise TrainingDivergedError(
            f"The loss or the validation error became {value}. The last saved state is kept. Lower "
            f"optimiser.learning_rate (now {config.optimiser.learning_rate:g}) or "
            f"optimiser.clip_norm (now {config.optimiser.clip_norm:g}) in a new run.directory."
        )


def _validate(state: TrainingState, validation: GraphFrames, epoch: Epoch, record: Record) -> None:
    """Measure the averaged weights, log the epoch, keep the best model and save the state."""
    config = record.config
    row: dict[str, Any] = {
        "step": state.step,
        "epoch": epoch.number,
        "learning_rate": epoch.learning_rate,
        **epoch.losses,
        "seconds": round(state.seconds, 1),
    }
    last = epoch.number == config.optimiser.epochs
    if epoch.number % config.run.validate_every == 0 or last:
        errors = errors_of(predict(state.averaged_model, validation, config.run.eval_batch_size))
        row |= {f"validation_{name}": value for name, value in errors._asdict().items()}
        score = validation_score(errors, config)
        _check_finite(score, config)
        if score < state.best:
            state.best = score
            provenance = record.provenance(state, validation.device, errors)
            save_model(state.averaged_model, record.best, provenance)
    record.log(row)
    if epoch.number % config.run.checkpoint_every == 0:
        state.save(record.state, record.identity)


def validation_score(errors: Errors, config: Config) -> float:
    """Return the mean absolute errors (eV, eV/Å) with the weights of the loss.

    The model with the lowest score is kept as the best, whatever the kind of the loss.
    """
    return (config.loss.energy * errors.energy_mae + config.loss.forces * errors.force_mae) / 1000


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM into a list instead of dying in the middle of a step."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received:  # asked twice: at once
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

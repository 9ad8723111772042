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
from lkm_calc.calculator import choose_device
from lkm_calc.precision import fast_matmul

from .config import Config, ConfigError
from .evaluate import Errors, errors_of, predict
from .frames import DataError, Frames, Split, random_split
from .loader import GraphFrames, epoch_order
from .loss import Losses, training_loss
from .md17 import read_md17
from .record import Record, identity_of, provenance_of
from .state import StateError, TrainingState, learning_rate


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
    try:
        device = choose_device(config.run.device)
    except ValueError as error:
        raise ConfigError(f"run.device: {error}") from error
    directory = Path(config.run.directory)
    options = (config.data.labels, config.data.check_units)
    frames = read_md17(config.data.train, *options)
    test = read_md17(config.data.test, *options) if config.data.test else None
    split = _load_or_draw_split(directory / "split.npz", len(frames), config)
    model = prepare_model(config, frames.select(split.train)).to(device)
    if test is not None:
        check_elements(model, test, config.data.test)
    state = TrainingState.create(model, config.optimiser)
    record = Record(directory)
    if (directory / "state.pt").exists():
        state.load(directory / "state.pt", identity_of(config))
    record.begin(config, split, state.step)

    data = GraphFrames(frames.select(split.train), model.cutoff, device)
    validation = GraphFrames(frames.select(split.validation), model.cutoff, device)
    total = config.optimiser.epochs * steps_per_epoch(data, config)
    with fast_matmul(), _stop_signals() as stopped:
        for epoch in _epochs(state, data, config, total, stop_after, stopped):
            _validate(state, validation, epoch, record, config, data)
        state.save(directory / "state.pt", identity_of(config))
        if state.step < total:
            return None
        return record.finish(config, state, data, validation, test)


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
    torch.manual_seed(config.run.seed)
    try:
        model = build_model(config.model.name, **config.model.hypers)
    except (ValueError, TypeError, RuntimeError) as error:
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


def _load_or_draw_split(path: Path, n_frames: int, config: Config) -> Split:
    """Return the split that the run was begun with, or draw it."""
    if not path.exists():
        return random_split(
            n_frames, config.data.n_train, config.data.n_validation, config.run.seed
        )
    with np.load(path) as saved:
        kept = Split(saved["train"], saved["validation"])
    if max(kept.train.max(), kept.validation.max()) >= n_frames:
        raise StateError(
            f"{path} names frames beyond the {n_frames} of the data file: it belongs to another "
            "file. Set run.directory to a new folder."
        )
    return kept


def _epochs(
    state: TrainingState,
    data: GraphFrames,
    config: Config,
    total: int,
    stop_after: int | None,
    stopped: list[int],
) -> Iterator[Epoch]:
    """Train, yielding at the end of each epoch."""
    per_epoch = steps_per_epoch(data, config)
    order = None
    began = time.perf_counter()
    with tqdm(total=total, initial=state.step, unit="step", smoothing=0.02) as bar:
        while state.step < total and not stopped:
            if stop_after is not None and state.step >= stop_after:
                return
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
                _check_finite(losses["train_total"], epoch, config)
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


def _check_finite(loss: float, epoch: int, config: Config) -> None:
    """Raise TrainingDivergedError if the loss of an epoch is not a number."""
    if not np.isfinite(loss):
        raise TrainingDivergedError(
            f"The loss became {loss} in epoch {epoch + 1}. The last saved state is "
            f"kept. Lower optimiser.learning_rate (now {config.optimiser.learning_rate:g}) or "
            f"optimiser.clip_norm (now {config.optimiser.clip_norm:g}) in a new run.directory."
        )


def _validate(
    state: TrainingState,
    validation: GraphFrames,
    epoch: Epoch,
    record: Record,
    config: Config,
    data: GraphFrames,
) -> None:
    """Measure the averaged weights, log the epoch, keep the best model and save the state."""
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
        if score < state.best:
            state.best = score
            provenance = provenance_of(config, state, data, errors)
            save_model(state.averaged_model, record.best, provenance)
    record.log(row)
    if epoch.number % config.run.checkpoint_every == 0:
        state.save(record.directory / "state.pt", identity_of(config))


def validation_score(errors: Errors, config: Config) -> float:
    """Return the errors weighted as in the loss (eV), by which the best model is chosen."""
    return (config.loss.energy * errors.energy_mae + config.loss.forces * errors.force_mae) / 1000


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM into a list instead of dying in the middle of a step."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
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

"""Length of a run: number of epochs within a given time, and prolonged runs."""

import argparse
import copy
import itertools
import json
import re
import time
from dataclasses import replace

import numpy as np

from lkm_calc.files import expanded

from ..config import Config, ConfigError
from ..data import GraphFrames, epoch_order
from ..report import predict
from ..state import TrainingState, learning_rate
from .parallel import Stop, Workers
from .step import Stepper

UNITS = {"h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}
"""Seconds."""
FIRST_STEPS = 5
"""Number of untimed warm-up steps; kernels are compiled and checked in the first one."""
SHARE = 0.01
"""Maximum fraction of the time spent on timing."""
LONGEST = 20.0
"""Maximum time in seconds spent on timing, unless a single step takes longer."""


def parse_time(text: str) -> float:
    """Return the seconds of a time such as "2h", "90min", "1h30m" or "45s".

    Raises:
        argparse.ArgumentTypeError: It is not a positive time.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(h|min|m|s)", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(n + u for n, u in parts) != "".join(text.split()) or not seconds > 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; use for example 2h, 90min, 1h30m or 45s"
        )
    return seconds


def duration(seconds: float) -> str:
    """Format a time: "2 h 5 min", "12 min", "40 s"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def epochs_within(
    seconds: float,
    state: TrainingState,
    data: GraphFrames,
    validation: GraphFrames,
    config: Config,
    team: Workers,
) -> int:
    """Return the number of epochs within a given time, from timed steps on a copy of the state.

    Args:
        seconds: Time for training and validation.
        state: Initial state, which is not changed.
        data: The training frames.
        validation: The validation frames.
        config: The run; its number of epochs is ignored.
        team: The processes among which every batch is split.
    """
    scratch = TrainingState.create(
        copy.deepcopy(state.model),
        config.optimiser,
        copy.deepcopy(state.learned),
        compiled=config.run.kernels == "auto",
    )
    batches = epoch_order(len(data), config.run.seed, 0).split(config.optimiser.batch_size)
    total = config.optimiser.epochs * len(batches)
    stepper = Stepper(scratch, data, config, team, total)
    limit, times = min(SHARE * seconds, LONGEST), []
    for k, indices in enumerate(itertools.cycle(batches)):
        began = time.perf_counter()
        stepper.step(indices, learning_rate(k, total, config.optimiser), Stop([], team))
        scratch.loss_sums.tolist()  # synchronises with a GPU
        scratch.counters.step += 1
        if k >= FIRST_STEPS:
            times.append(time.perf_counter() - began)
            if team.from_first(sum(times), data.device) > limit:
                break
    per_epoch = float(np.median(times)) * len(batches)
    began = time.perf_counter()
    predict(scratch.averaged_model, validation, config.run.eval_batch_size)
    validating = (time.perf_counter() - began) / config.run.validate_every
    found = seconds / (per_epoch + validating)
    return max(1, round(team.from_first(found, data.device)))


def prolonged(config: Config, epochs: int) -> Config:
    """Return the configuration that continues the run in a folder to a larger number of epochs.

    The learning rate restarts from half its peak. If the run has already been prolonged to this
    number of epochs, its configuration is returned.

    Raises:
        ConfigError: There is no run in the folder, or it has more epochs.
    """
    path = expanded(config.run.directory) / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"--prolong: there is no run in {config.run.directory}. Train a model first, or set "
            "run.directory to the folder of the run."
        )
    saved = json.loads(path.read_text(encoding="utf-8"))["optimiser"]
    if epochs < saved["epochs"]:
        raise ConfigError(
            f"--prolong is {epochs}, but the run in {config.run.directory} has {saved['epochs']} "
            "epochs. Use a larger total number of epochs."
        )
    restart = saved["epochs"] if epochs > saved["epochs"] else saved.get("restart_epoch", 0)
    return replace(
        config, optimiser=replace(config.optimiser, epochs=epochs, restart_epoch=restart)
    )


def epochs_of_run(directory: str) -> int | None:
    """Return the number of epochs of the run in a folder, or None if there is no run."""
    folder = expanded(directory)
    if not ((folder / "config.json").is_file() and (folder / "state.pt").is_file()):
        return None
    table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(table["optimiser"]["epochs"])

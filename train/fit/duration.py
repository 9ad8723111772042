"""How long to train: epochs that take a given time, and runs that are prolonged."""

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
from .parallel import Stop, Workers
from .state import TrainingState, learning_rate
from .step import Stepper

UNITS = {"h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}
"""Seconds."""
FIRST_STEPS = 5
"""Steps that are not timed: kernels are compiled and checked in the first one."""
SHARE = 0.01
"""Part of the time that timing takes, at most."""
LONGEST = 20.0
"""Seconds that timing takes at most, unless a step takes longer."""


def parse_time(text: str) -> float:
    """Return the seconds of a time such as "2h", "90min", "1h30m" or "45s".

    Raises:
        argparse.ArgumentTypeError: It is not a positive time.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(h|min|m|s)", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(n + u for n, u in parts) != "".join(text.split()) or not seconds > 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; give one such as 2h, 90min, 1h30m or 45s"
        )
    return seconds


def duration(seconds: float) -> str:
    """Return a time in words: "2 h 5 min", "12 min", "40 s"."""
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
    """Return how many epochs take a given time, measured on a copy of the state.

    Args:
        seconds: For training and validation.
        state: Not changed.
        data: The training frames.
        validation: The validation frames.
        config: The run; its number of epochs does not matter.
        team: The processes that share every batch.
    """
    scratch = TrainingState.create(
        copy.deepcopy(state.model), config.optimiser, copy.deepcopy(state.learned)
    )
    batches = epoch_order(len(data), config.run.seed, 0).split(config.optimiser.batch_size)
    total = config.optimiser.epochs * len(batches)
    stepper = Stepper(scratch, data, config, team, total)
    limit, times = min(SHARE * seconds, LONGEST), []
    for k, indices in enumerate(itertools.cycle(batches)):
        began = time.perf_counter()
        stepper.step(indices, learning_rate(k, total, config.optimiser), Stop([], team))
        scratch.loss_sums.tolist()  # a GPU has finished then
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
    """Return the configuration that continues the run of a folder to more epochs in all.

    The learning rate starts again from half its peak. The same call on a run that is already being
    prolonged to as many epochs returns its configuration.

    Raises:
        ConfigError: The folder holds no run, or one of more epochs.
    """
    path = expanded(config.run.directory) / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"--prolong: there is no run in {config.run.directory}. Train one first, or give its "
            "run.directory."
        )
    saved = json.loads(path.read_text(encoding="utf-8"))["optimiser"]
    if epochs < saved["epochs"]:
        raise ConfigError(
            f"--prolong is {epochs}, but the run in {config.run.directory} has {saved['epochs']} "
            "epochs. Give the number of epochs in all, which must be larger."
        )
    restart = saved["epochs"] if epochs > saved["epochs"] else saved.get("restart_epoch", 0)
    return replace(
        config, optimiser=replace(config.optimiser, epochs=epochs, restart_epoch=restart)
    )


def epochs_of_run(directory: str) -> int | None:
    """Return the number of epochs of the run in a folder, None where there is none."""
    folder = expanded(directory)
    if not ((folder / "config.json").is_file() and (folder / "state.pt").is_file()):
        return None
    table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(table["optimiser"]["epochs"])

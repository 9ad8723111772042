"""Time training steps and force calls with and without the kernel, interleaved in one process.

    python -m benchmarks.kernel_training rmd17_ethanol_train_01.npz rmd17_aspirin_train_01.npz
    python -m benchmarks.kernel_training --model pamnet rmd17_ethanol_train_01.npz
    python -m benchmarks.kernel_training --memory rmd17_aspirin_train_01.npz

Batches of 5 frames, float32, one thread, Muon; medians in milliseconds. With ``--memory``: by how
much 50 steps raise the peak resident memory of a new process, including the comparison with double
backward in the first step. The width is the number of channels of ACE or the width of messages and
features of the others. Requires rMD17 files.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from lkm_calc import build_model, energy_and_forces
from lkm_calc.compile import Kernel
from train.config import config_from_table
from train.data import GraphFrames, epoch_order
from train.fit import Stepper, Stop, prepare_model, workers
from train.formats import read_frames
from train.state import TrainingState

CPU = torch.device("cpu")
WIDTHS = {"ace": [32, 64], "dimenet++": [64, 128], "mxmnet": [64, 128], "pamnet": [64, 128]}
"""Default widths of the architectures that train with their kernels."""


def hypers_of(model: str, width: int) -> dict[str, int]:
    """Return the hyperparameters of a model of a width."""
    if model == "ace":
        return {"num_channels": width, "num_radial": 6}
    if model == "dimenet++":  # the ratios of rmd17-dimenet
        return {"hidden": width, "triplet_dim": width // 2, "output_dim": width}
    return {"hidden": width}


def medians_ms(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median times of functions called in turn, after one untimed call of each."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, own in zip(functions, times, strict=True):
            began = time.perf_counter()
            function()
            if repeat:
                own.append(time.perf_counter() - began)
    return [1000 * statistics.median(own) for own in times]


def training_step(
    path: str, model: dict[str, Any], kernels: str, stack: ExitStack
) -> Callable[[], object]:
    """Return a function that takes a training step."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    team = stack.enter_context(workers(CPU))
    config = config_from_table(
        {
            "data": {"train": path},
            "model": model,
            "loss": {"gamma": 0.0},
            "run": {"directory": folder, "device": "cpu", "kernels": kernels},
        }
    )
    frames = read_frames(path).select(np.arange(100))
    state = TrainingState.create(
        prepare_model(config, frames), config.optimiser, compiled=kernels == "auto"
    )
    stepper = Stepper(state, GraphFrames(frames, state.model, CPU), config, team, 10_000)
    batches, stop = cycle(epoch_order(len(frames), 0, 0).split(5)), Stop([], team)
    return lambda: stepper.step(next(batches), 1e-3, stop)


def added_memory(path: str, model: dict[str, Any], kernels: str, steps: int = 50) -> float:
    """Return by how much training steps raise the peak resident memory of this process, in MB."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        step = training_step(path, model, kernels, stack)
        before = peak_memory()
        for _ in range(steps):
            step()
    return peak_memory() - before


def peak_memory() -> float:
    """Return the peak resident memory of this process in MB (on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def force_calls(path: str, model: dict[str, Any]) -> list[Callable[[], object]]:
    """Return energy and forces of the first frame with and without the kernel, as functions."""
    built = build_model(model["name"], **model["hypers"])
    graph = (
        GraphFrames(read_frames(path).select(np.arange(1)), built, CPU).batch(torch.arange(1)).graph
    )
    return [partial(Kernel(built), graph), partial(energy_and_forces, built, graph)]


def print_memory(files: Sequence[str], model: str, widths: Sequence[int]) -> None:
    """Print the table of memory."""
    print("file, width: memory of steps in MB with kernel, without")
    for path in files:
        for width in widths:
            arguments = {"name": model, "hypers": hypers_of(model, width)}
            found = []
            for how in ("auto", "off"):
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    found.append(pool.submit(added_memory, path, arguments, how).result())
            print(f"{path}, {width}: {found[0]:.1f} {found[1]:.1f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", help="rMD17 files")
    parser.add_argument("--model", choices=sorted(WIDTHS), default="ace")
    parser.add_argument("--widths", nargs="+", type=int, help="default depends on the model")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of times")
    options = parser.parse_args()
    if options.memory:
        print_memory(options.files, options.model, options.widths or WIDTHS[options.model])
        return
    torch.set_num_threads(1)
    print("file, width: step with kernel, without, ratio; forces with kernel, without, ratio")
    for path in options.files:
        for width in options.widths or WIDTHS[options.model]:
            model = {"name": options.model, "hypers": hypers_of(options.model, width)}
            with ExitStack() as stack:
                steps = [training_step(path, model, how, stack) for how in ("auto", "off")]
                step, slow_step = medians_ms(steps, options.repeats)
            force, slow_force = medians_ms(force_calls(path, model), options.repeats)
            print(
                f"{path}, {width}: {step:.2f} {slow_step:.2f} {slow_step / step:.1f}; "
                f"{force:.2f} {slow_force:.2f} {slow_force / force:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

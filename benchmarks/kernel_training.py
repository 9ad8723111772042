"""Time training steps and force calls of ACE with and without its kernel, in one process.

    python -m benchmarks.kernel_training rmd17_ethanol_train_01.npz rmd17_aspirin_train_01.npz

Batches of 5 frames, float32, one thread, Muon; medians in milliseconds. Requires rMD17 files.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import torch

from lkm_calc import Graph, build_model, energy_and_forces
from lkm_calc.compile import Kernel
from train.config import config_from_table
from train.data import GraphFrames, epoch_order
from train.fit import Stepper, Stop, TrainingState, prepare_model, workers
from train.formats import read_frames

CPU = torch.device("cpu")


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call in milliseconds, after one that is not timed."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def step_ms(path: str, kernels: str, hypers: dict[str, Any], repeats: int) -> float:
    """Return the time of a training step."""
    with tempfile.TemporaryDirectory() as folder, workers(CPU) as team:
        config = config_from_table(
            {
                "data": {"train": path},
                "model": {"name": "ace", "hypers": hypers},
                "loss": {"gamma": 0.0},
                "run": {"directory": folder, "device": "cpu", "kernels": kernels},
            }
        )
        frames = read_frames(path).select(range(100))
        state = TrainingState.create(prepare_model(config, frames), config.optimiser, None)
        stepper = Stepper(state, GraphFrames(frames, state.model, CPU), config, team, 10_000)
        batches = epoch_order(len(frames), 0, 0).split(5)
        stop, step = Stop([], team), count()
        return median_ms(
            lambda: stepper.step(batches[next(step) % len(batches)], 1e-3, stop), repeats
        )


def force_ms(path: str, kernel: bool, hypers: dict[str, Any], repeats: int) -> float:
    """Return the time of energy and forces of the first frame."""
    model = build_model("ace", **hypers)
    data = GraphFrames(read_frames(path).select(range(1)), model, CPU)
    graph: Graph = data.batch(torch.arange(1)).graph
    if kernel:
        run = Kernel(model)
        return median_ms(lambda: run(graph), repeats)
    return median_ms(lambda: energy_and_forces(model, graph), repeats)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", help="rMD17 files")
    parser.add_argument("--channels", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("file, channels: step with kernel, without, ratio; forces with kernel, without, ratio")
    for path in options.files:
        for channels in options.channels:
            hypers = {"num_channels": channels, "num_radial": 6}
            figures = [step_ms(path, how, hypers, options.repeats) for how in ("auto", "off")]
            figures += [force_ms(path, how, hypers, options.repeats) for how in (True, False)]
            step, slow_step, force, slow_force = figures
            print(
                f"{path}, {channels}: {step:.2f} {slow_step:.2f} {slow_step / step:.1f}; "
                f"{force:.2f} {slow_force:.2f} {slow_force / force:.1f}"
            )


if __name__ == "__main__":
    main()

"""Parts of a training step with a kernel.

    python -m benchmarks.training_profile rmd17_ethanol_train_01.npz rmd17_aspirin_train_01.npz

Batches of 5 frames, float32, one thread, the default ACE unless ``--model`` and ``--width`` are
given: medians in milliseconds, and shares of the whole step.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

from lkm_calc.compile import Kernel
from train.data import GraphFrames
from train.fit import step
from train.gradients import KernelGradients
from train.state import Muon, TrainingState

from .kernel_training import WIDTHS, hypers_of, training_step

PARTS: dict[str, list[tuple[Any, str]]] = {
    "batch": [(GraphFrames, "batch"), (GraphFrames, "totals")],
    "copy of the weights": [(KernelGradients, "_update")],
    "energy, forces, embeddings": [(Kernel, "run")],
    "gradients of the weights": [(Kernel, "gradients")],
    "losses": [(step, "training_loss")],
    "AdamW": [(torch.optim.AdamW, "step")],
    "Muon": [(Muon, "step")],
    "gradient norm": [(step, "clip_norm")],
    "averages of the weights": [(TrainingState, "update_average")],
}
"""Functions that are timed."""


def profile(take: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return the median times of the parts of a step and of the whole step in milliseconds."""
    now: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                now[part] += 1000 * (time.perf_counter() - began)

        return wrapped

    found: dict[str, list[float]] = {part: [] for part in (*PARTS, "step")}
    take()
    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        for _ in range(repeats):
            now.clear()
            timed("step", take)()
            for part, times in found.items():
                times.append(now[part])
    return {part: statistics.median(times) for part, times in found.items()}


def main() -> None:
    """Print a table per file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", help="rMD17 files")
    parser.add_argument("--model", choices=sorted(WIDTHS), default="ace")
    parser.add_argument("--width", type=int, help="see benchmarks.kernel_training")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    hypers = hypers_of(options.model, options.width) if options.width else {}
    for path in options.files:
        with ExitStack() as stack:
            take = training_step(path, {"name": options.model, "hypers": hypers}, "auto", stack)
            times = profile(take, options.repeats)
        whole = times.pop("step")
        times["rest"] = whole - sum(times.values())
        print(f"{path}: {whole:.2f} ms")
        for part, value in times.items():
            print(f"  {part:28} {value:7.2f} ms {100 * value / whole:5.0f} %")


if __name__ == "__main__":
    main()

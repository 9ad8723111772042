"""Cost of LKM: time and memory of a training step with LKM relative to those without.

Steps with and without LKM are interleaved in one process, so that other load affects both, and the
lower quartiles of their times are compared, block by block. Memory is that of the tensors saved for
the backward pass. Inference is not affected: γ is an option of the loss, not of the model.

    python -m studies.cost --data FOLDER
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lkm_calc import EnergyModel
from lkm_calc.runtime import choose_device, fast_matmul
from train.config import Config, LossConfig
from train.data import GraphFrames
from train.fit import Stepper, Stop, Workers, device_name, prepare_model
from train.formats import read_data
from train.report import write_json
from train.state import TrainingState

from .arms import HERE, Arm, read_study
from .tables import mean_and_error, table, written

RESULTS = HERE / "results" / "cost"
GAMMA = 0.01


def stepper(model: EnergyModel, data: GraphFrames, config: Config, gamma: float) -> Stepper:
    """Return what makes training steps with a γ."""
    loss = LossConfig(kind="l2", energy=2.0, gamma=gamma)
    state = TrainingState.create(copy.deepcopy(model), config.optimiser)
    return Stepper(
        state, data, Config(loss=loss, optimiser=config.optimiser), Workers(), total=10**6
    )


def kept_bytes(step: Callable[[], None]) -> int:
    """Return the bytes of the distinct tensors that a step keeps for its gradients."""
    kept: dict[int, int] = {}
    tensors = []  # alive until the end, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        tensors.append(tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values())


def measure(arm: Arm, folder: Path, blocks: int, steps: int) -> dict[str, object]:
    """Return time and memory of a step with LKM over those without."""
    config = arm.config
    train = Path(config.data.train)
    frames = read_data(str(train if train.is_absolute() else folder / train), config.data)
    frames = frames.select(np.arange(min(len(frames), 100)))
    device = choose_device(config.run.device)
    model = prepare_model(config, frames).to(device)
    data = GraphFrames(frames, model, device)
    batch = torch.arange(config.optimiser.batch_size)
    steppers = [stepper(model, data, config, gamma) for gamma in (0.0, GAMMA)]
    never = Stop([], Workers())

    def one(which: Stepper) -> None:
        which.step(batch, 1e-5, never)

    def seconds(which: Stepper) -> float:
        began = time.perf_counter()
        one(which)
        which.state.loss_sums.sum().item()  # waits for a GPU
        return time.perf_counter() - began

    with fast_matmul():
        for which in steppers:
            one(which)
        memory = [kept_bytes(lambda which=which: one(which)) for which in steppers]  # type: ignore[misc]
        times = np.array(
            [[[seconds(which) for which in steppers] for _ in range(steps)] for _ in range(blocks)]
        )
    plain, mixed = np.quantile(times, 0.25, axis=1).T
    ratio, error = mean_and_error(mixed / plain)
    return {
        **arm.labels,
        "time": [round(float(ratio), 4), round(float(error), 4)],
        "memory": round(memory[1] / memory[0], 4),
        "device": device_name(device),
    }


def report(results: Path, docs: Path) -> str:
    """Return the table of costs."""
    del docs  # no picture
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    cells = [
        [
            row["model"],
            row["molecule"],
            written(row["time"][0], row["time"][1], 3),
            f"{row['memory']:.3f}",
        ]
        for row in rows
    ]
    heads = ["model", "molecule", "time", "memory"]
    return table(heads, cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all architectures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path(), help="folder that holds rmd17/")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="of each, a block")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for arm in read_study(HERE / "baseline.toml"):
        kind = (arm.labels["labels"], arm.labels["frames"], arm.labels["gamma"], arm.labels["seed"])
        if kind == ("rMD17", "200", "0", "1") and arm.labels["molecule"] != "malonaldehyde":
            arm = Arm(arm.study, {k: arm.labels[k] for k in ("model", "molecule")}, arm.config)
            result = measure(arm, options.data, options.blocks, options.steps)
            options.results.mkdir(parents=True, exist_ok=True)
            write_json(
                options.results / f"{arm.labels['model']}_{arm.labels['molecule']}.json", result
            )


if __name__ == "__main__":
    main()

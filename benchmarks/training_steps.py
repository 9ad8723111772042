"""Training steps per second with frames stored as flat tensors, versus a PyG DataLoader.

The same model, loss and optimiser on the same frames, with three interleaved ways of creating
batches: that of lkm-train, which slices flat tensors; torch-geometric's DataLoader over Data
objects with precomputed edges; and the same with edges computed in every step, as in the models of
torch-geometric. "batches only" excludes the model. For DimeNet++ there is a fourth variant:
torch-geometric's model of the same size with its DataLoader, as a user without lkm-calc would write
it, with torch's default settings for matrix products instead of those of lkm-train. Steps of
lkm-train are also timed compiled (``run.compile``) or, on a GPU, replayed from a CUDA graph
(``run.cuda_graphs``), and with Muon of lkm-train and of torch instead of AdamW.

    python -m benchmarks.training_steps rmd17_ethanol_train_01.npz --output training_steps.json
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from lkm_calc import EnergyModel, Graph, build_model, energy_and_forces, load_model
from lkm_calc.graph import neighbour_list
from lkm_calc.potential import bundled_models
from lkm_calc.runtime import choose_device, fast_matmul
from train.config import Config, LossConfig, OptimiserConfig, RunConfig
from train.data import Batch, Frames, GraphFrames, epoch_order
from train.fit import Stepper, Stop, Workers
from train.formats import read_frames
from train.gradients import training_loss
from train.state import TrainingState, make_optimisers

from . import pyg

OURS = "lkm-train"
PYG = "PyG DataLoader"
PYG_EDGES = "PyG DataLoader, edges anew"
REPLAYED = "lkm-train, CUDA graph"
COMPILED = "lkm-train, compiled"
PYG_MODEL = "PyG DataLoader and DimeNet++"
MUON = "lkm-train, Muon"
TORCH_MUON = "lkm-train, torch's Muon"


class Structure(Data):
    """A frame whose reverse edges are counted on in a batch."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if key == "reverse":
            return self.edge_index.shape[1]
        return super().__inc__(key, value, *args, **kwargs)


def structures(frames: Frames, cutoff: float) -> list[Structure]:
    """Return the frames as torch-geometric keeps them."""
    forces = frames.forces
    if forces is None:
        raise SystemExit("The file has no forces.")
    found = []
    for f, (first, last) in enumerate(pairwise(frames.starts)):
        edges = neighbour_list(frames.positions[first:last], cutoff)
        found.append(
            Structure(
                z=torch.from_numpy(frames.numbers[first:last]),
                pos=torch.from_numpy(frames.positions[first:last]),
                forces=torch.from_numpy(forces[first:last]),
                energy=float(frames.energies[f]),
                edge_index=torch.from_numpy(edges.edge_index),
                reverse=torch.from_numpy(edges.reverse),
            )
        )
    return found


def batch_of(data: Any, device: torch.device) -> Batch:
    """Return a batch of torch-geometric's as one of ours."""
    data = data.to(device)
    graph = Graph(data.z, data.pos, data.edge_index, data.reverse, data.batch, int(data.num_graphs))
    sizes = data.ptr.diff()
    return Batch(graph, data.energy.double(), data.forces, None, sizes, len(data.z))


def with_new_edges(data: Any, cutoff: float) -> Any:
    """Find the edges of a batch of torch-geometric's again, structure by structure."""
    edges, reverse, atoms, total = [], [], 0, 0
    for first, last in pairwise(data.ptr.tolist()):
        found = neighbour_list(data.pos[first:last].numpy(), cutoff)
        edges.append(found.edge_index + atoms)
        reverse.append(found.reverse + total)
        atoms, total = last, total + len(found.reverse)
    data.edge_index = torch.from_numpy(np.concatenate(edges, axis=1))
    data.reverse = torch.from_numpy(np.concatenate(reverse))
    return data


def sources(
    frames: Frames, model: EnergyModel, size: int, device: torch.device
) -> dict[str, Callable[[], Batch]]:
    """Return functions that give the next batch, by name."""
    data = GraphFrames(frames, model, device)

    def flat() -> Iterator[Batch]:
        for epoch in range(10**9):
            for indices in epoch_order(len(data), 0, epoch).split(size)[: len(data) // size]:
                yield data.batch(indices)

    loader = DataLoader(structures(frames, model.cutoff), size, shuffle=True, drop_last=True)

    def loaded(anew: bool) -> Iterator[Batch]:
        for batch in _endless(loader):
            yield batch_of(with_new_edges(batch, model.cutoff) if anew else batch, device)

    return {
        OURS: flat().__next__,
        PYG: loaded(anew=False).__next__,
        PYG_EDGES: loaded(anew=True).__next__,
        PYG_MODEL: loaded(anew=False).__next__,
    }


def _endless(loader: DataLoader) -> Iterator[Any]:
    """Yield batches for ever, shuffled anew in each epoch."""
    while True:
        yield from loader


def model_of(name: str, hidden: int) -> EnergyModel:
    """Return a bundled model, or a new one of an architecture."""
    if name in bundled_models():
        return load_model(name, dtype=torch.float32).requires_grad_(True).train()
    return build_model(name, hidden=hidden)


def optimisers(model: torch.nn.Module, name: str) -> list[torch.optim.Optimizer]:
    """Return what changes the weights: AdamW, or one of the Muons with it."""
    kind: Literal["muon", "adamw"] = "muon" if name in (MUON, TORCH_MUON) else "adamw"
    found = make_optimisers(model, OptimiserConfig(kind=kind, learning_rate=1e-4))
    if name == TORCH_MUON:
        matrices = found[0].param_groups[0]["params"]
        found[0] = torch.optim.Muon(matrices, lr=1e-4, adjust_lr_fn="match_rms_adamw")
    return found


def trainer(model: torch.nn.Module, name: str = OURS) -> Callable[[Batch], None]:
    """Return a function that makes a training step with a model of ours or of theirs."""
    changing = optimisers(model, name)
    loss = LossConfig(gamma=0.01)

    def step(batch: Batch) -> None:
        model.zero_grad()
        if isinstance(model, EnergyModel):
            out = energy_and_forces(model, batch.graph, create_graph=True)
            training_loss(out, batch, loss).total.backward()
        else:
            theirs = pyg.energy_and_forces(model, batch.graph, create_graph=True)
            energy = (theirs.energy - batch.energies).abs().mean()
            (energy + (theirs.forces - batch.forces).abs().mean()).backward()
        for optimiser in changing:
            optimiser.step()
        if batch.energies.is_cuda:
            torch.cuda.synchronize(batch.energies.device)

    return step


def replayed(model: EnergyModel, data: GraphFrames) -> Callable[[torch.Tensor], None]:
    """Return a function that makes whole steps of lkm-train, compiled or from a CUDA graph."""
    on_gpu = model.device.type == "cuda"
    config = Config(
        loss=LossConfig(gamma=0.01),
        optimiser=OptimiserConfig(kind="adamw", learning_rate=1e-3),
        run=RunConfig(cuda_graphs=on_gpu, compile=not on_gpu, kernels="off"),
    )
    state = TrainingState.create(model, config.optimiser)
    stepper = Stepper(state, data, config, Workers(), total=10**9)

    def step(indices: torch.Tensor) -> None:
        stepper.step(indices, 1e-4, Stop([], Workers()))
        if on_gpu:
            torch.cuda.synchronize(model.device)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("frames", help="data file with forces")
    parser.add_argument("--model", default="pamnet", help="architecture or bundled model")
    parser.add_argument("--hidden", type=int, default=64, help="width of a new model")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[5, 32])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--compile", action="store_true", help="on a CPU, compile as well")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = choose_device(options.device)
    frames = read_frames(options.frames)
    results = {}
    for size in options.batch_sizes:
        model = model_of(options.model, options.hidden).to(device)
        makers, step = sources(frames, model, size, device), trainer(model)
        steps = dict.fromkeys(makers, step)
        for name in (MUON, TORCH_MUON):
            makers[name], steps[name] = makers[OURS], trainer(copy.deepcopy(model), name)
        if options.model == "dimenet++":
            theirs = pyg.dimenetpp(options.hidden).to(device)
            steps[PYG_MODEL] = trainer(theirs)
        else:
            del makers[PYG_MODEL], steps[PYG_MODEL]
        if device.type == "cuda" or options.compile:
            data = GraphFrames(frames, model, device)
            name = REPLAYED if device.type == "cuda" else COMPILED
            makers[name] = lambda n=size, data=data: torch.randperm(len(data))[:n]
            steps[name] = replayed(copy.deepcopy(model), data)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
        for _ in tqdm(range(options.repeats), f"batches of {size}"):
            for name, make in makers.items():
                with nullcontext() if name == PYG_MODEL else fast_matmul():
                    start = time.perf_counter()
                    batch = make()
                    made = time.perf_counter()
                    steps[name](batch)
                    seconds[name].append((made - start, time.perf_counter() - start))
        # The first steps allocate.
        medians = {name: np.median(values[3:], axis=0).tolist() for name, values in seconds.items()}
        results[size] = {
            name: {
                "steps per second": 1 / whole,
                "batches only, ms": 1e3 * made,
                "lkm-train is faster by": whole / medians[OURS][1],
            }
            for name, (made, whole) in medians.items()
        }
        print(f"\nbatches of {size}: steps/s, ms for the batch alone, times slower than {OURS}")
        for name, row in results[size].items():
            print(
                f"  {name:28s} {row['steps per second']:8.1f} {row['batches only, ms']:8.2f} "
                f"{row['lkm-train is faster by']:6.2f}"
            )
    if options.output:
        about = {"torch": torch.__version__, "model": options.model, "device": str(device)}
        options.output.write_text(json.dumps(about | {"batch sizes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

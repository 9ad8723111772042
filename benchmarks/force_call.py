"""Cost of an energy-and-force call of every architecture beside torch-geometric's DimeNet++.

Each call starts at the atoms: neighbour list, angles, energy, forces; float32, one thread, weights
drawn at random. All are called in turn in one process, so that a busy machine slows all of them;
what counts are the ratios. torch-geometric's layers run on our edges and angles, once as its users
have them and once with our route for matrix products as well.

    python -m benchmarks.force_call aspirin.xyz chignolin.pdb --output force_call.json
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import ase
import ase.io
import numpy as np
import torch
from ase.build import molecule
from torch import Tensor
from tqdm import tqdm

from lkm_calc import MODELS, Graph, build_model, energy_and_forces
from lkm_calc.precision import fast_matmul

from . import pyg

BASELINE = "torch-geometric"


def calls() -> dict[str, Callable[[ase.Atoms], Tensor]]:
    """Return functions from atoms to forces, by name."""
    models = {name: build_model(name).eval().requires_grad_(False) for name in MODELS}
    theirs = pyg.dimenetpp().eval().requires_grad_(False)

    def ours(name: str) -> Callable[[ase.Atoms], Tensor]:
        def call(atoms: ase.Atoms) -> Tensor:
            graph = Graph.from_atoms(atoms, models[name].cutoff)
            with fast_matmul(graph.edge_index.shape[1]):
                return energy_and_forces(models[name], graph).forces

        return call

    def peer(fast: bool) -> Callable[[ase.Atoms], Tensor]:
        def call(atoms: ase.Atoms) -> Tensor:
            graph = Graph.from_atoms(atoms, 5.0)
            with fast_matmul(graph.edge_index.shape[1]) if fast else nullcontext():
                return pyg.energy_and_forces(theirs, graph).forces

        return call

    return {
        BASELINE: peer(fast=False),
        f"{BASELINE}, our products": peer(fast=True),
        **{name: ours(name) for name in MODELS},
    }


def measure(atoms: ase.Atoms, repeats: int, label: str) -> dict[str, list[float]]:
    """Return the seconds of each call of each function, in turn."""
    functions = calls()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function(atoms)  # the first call allocates
    for _ in tqdm(range(repeats), label):
        for name, function in functions.items():
            start = time.perf_counter()
            function(atoms)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def read(path: str) -> ase.Atoms:
    """Return the first structure of a file."""
    atoms = ase.io.read(path, index=0)
    assert isinstance(atoms, ase.Atoms)
    atoms.pbc = False
    return atoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("structures", nargs="*", help="files, beside the ethanol built in")
    parser.add_argument("--repeats", type=int, default=30, help="calls of each (default 30)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    structures = {"ethanol": molecule("CH3CH2OH")}
    structures |= {Path(path).stem: read(path) for path in arguments.structures}
    results = {}
    for label, atoms in structures.items():
        seconds = measure(atoms, arguments.repeats, label)
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        ratios = {
            name: float(np.median(np.divide(seconds[BASELINE], values)))
            for name, values in seconds.items()
        }
        results[label] = {"atoms": len(atoms), "seconds": medians, "times faster": ratios}
        print(f"\n{label}, {len(atoms)} atoms: ms a call, times faster than {BASELINE}")
        for name in medians:
            print(f"  {name:32s} {1e3 * medians[name]:8.1f} {ratios[name]:6.2f}")
    if arguments.output:
        about = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
        arguments.output.write_text(json.dumps(about | {"structures": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

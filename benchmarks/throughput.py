"""Structures per second: calculator.evaluate versus torch-geometric's DimeNet++.

Both compute forces of the same displaced copies of a molecule, from the atoms to the forces, in
batches of several sizes and interleaved in one process; float32, random weights.

    python -m benchmarks.throughput aspirin.xyz --output throughput.json
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np
import torch
from tqdm import tqdm

from lkm_calc import MODELS, Graph, LKMCalculator, build_model
from lkm_calc.runtime import choose_device

from . import pyg

BASELINE = "PyG DimeNet++"
Evaluate = Callable[[Sequence[ase.Atoms], int], object]


def evaluators(device: torch.device) -> dict[str, Evaluate]:
    """Return functions of structures and batch size, by name."""

    def ours(name: str, compile: bool = False) -> Evaluate:
        torch.manual_seed(0)
        model = build_model(name).requires_grad_(False)
        calculator = LKMCalculator(model, str(device), compile=compile)
        return lambda structures, size: calculator.evaluate(structures, batch_size=size)

    theirs = pyg.dimenetpp().to(device).eval().requires_grad_(False)

    def peer(structures: Sequence[ase.Atoms], size: int) -> None:
        for first in range(0, len(structures), size):
            chosen = structures[first : first + size]
            graph = Graph.collate([Graph.from_atoms(atoms, 5.0) for atoms in chosen])
            pyg.energy_and_forces(theirs, graph.to(device)).forces.cpu()

    found = {BASELINE: peer, **{name: ours(name) for name in MODELS}}
    if device.type == "cpu":
        found |= {f"{name}, compiled": ours(name, compile=True) for name in MODELS}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("molecule", help="file that ASE reads")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device(options.device)
    atoms = ase.io.read(options.molecule, index=0)
    atoms.pbc = False
    found, rng = evaluators(device), np.random.default_rng(0)
    results: dict[str, dict[int, float]] = {name: {} for name in found}
    for size in options.batch_sizes:
        structures = [atoms.copy() for _ in range(max(size, 8))]
        for one in structures:
            one.positions += rng.normal(0, 0.02, one.positions.shape)
        rates: dict[str, list[float]] = {name: [] for name in found}
        for _ in tqdm(range(options.rounds + 1), f"batches of {size}"):
            for name, evaluate in found.items():
                began = time.perf_counter()
                evaluate(structures, size)
                rates[name].append(len(structures) / (time.perf_counter() - began))
        for name, measured in rates.items():
            results[name][size] = float(np.median(measured[1:]))  # the first one allocates
    best = {name: max(row.values()) for name, row in results.items()}
    sizes = "".join(f"{size:>9d}" for size in options.batch_sizes)
    print(f"\nstructures a second by batch size, and the best over that of {BASELINE}")
    print(f"  {'':20s}{sizes}     best")
    for name, row in results.items():
        values = "".join(f"{value:9.1f}" for value in row.values())
        print(f"  {name:20s}{values} {best[name] / best[BASELINE]:8.2f}")
    if options.output:
        about = {"torch": torch.__version__, "device": str(device), "atoms": len(atoms)}
        ratios = {name: value / best[BASELINE] for name, value in best.items()}
        text = json.dumps(about | {"per second": results, "best": ratios}, indent=1)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

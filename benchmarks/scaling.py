"""Time and memory versus the number of atoms, up to thousands of atoms of periodic water.

Every point is measured in a separate process, whose peak memory is reported. The density of water
is constant, so that atoms have the same number of neighbours in all but the smallest boxes.

    python -m benchmarks.scaling --output scaling.json --plot scaling.png
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.calculators.calculator import Calculator
from matplotlib.figure import Figure

from lkm_calc import MODELS, Graph, LKMCalculator, build_model

from . import pyg
from .md_step import water

PYG = "PyG DimeNet++, 32 neighbours"
COMPILED = ", compiled"
SIZES = (3, 12, 55, 111, 333, 667)
"""Molecules of water: 9 to 2001 atoms."""


def point(name: str, molecules: int, repeats: int) -> dict[str, float]:
    """Measure one force field on one box, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    box = water(molecules)
    calculator: Calculator = (
        pyg.PyGCalculator(neighbours=32)
        if name == PYG
        else LKMCalculator(
            build_model(name.removesuffix(COMPILED)).requires_grad_(False),
            "cpu",
            compile=name.endswith(COMPILED),
        )
    )
    calculator.get_forces(water(2))  # what does not depend on the size
    if isinstance(calculator, LKMCalculator) and name.endswith(COMPILED) and calculator.ordinary:
        raise SystemExit("there is no compiler, or the program is not faster")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for k in range(repeats):
        box.rattle(0.01, seed=k)
        began = time.perf_counter()
        calculator.get_forces(box)
        seconds.append(time.perf_counter() - began)
    edges = Graph.from_atoms(box, 5.0).edge_index.shape[1]
    return {
        "atoms": len(box),
        "neighbours": edges / len(box),
        "seconds": float(np.median(seconds)),
        "MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def plot(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw time and memory an atom."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for k, (key, label, factor) in enumerate(
        (("seconds", "ms a step and atom", 1e3), ("MiB", "MiB an atom", 1.0))
    ):
        axes = figure.add_subplot(1, 2, k + 1)
        for name, rows in results.items():
            atoms = [row["atoms"] for row in rows]
            each = [factor * row[key] / row["atoms"] for row in rows]
            axes.plot(atoms, each, "o-", label=name)
        axes.set(xscale="log", ylim=(0, None), xlabel="atoms of water", ylabel=label)
        axes.grid(alpha=0.3)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8
    )
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="molecules of water")
    parser.add_argument("--names", nargs="+", default=[PYG, f"dimenet++{COMPILED}", *MODELS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--plot", type=Path, help="picture of them")
    parser.add_argument("--point", nargs=2, metavar=("NAME", "MOLECULES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        name, molecules = options.point
        print(json.dumps(point(name, int(molecules), options.repeats)))
        return
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.names}
    for molecules in options.sizes:
        for name in options.names:
            command = [sys.executable, "-m", "benchmarks.scaling", "--point", name, str(molecules)]
            command += ["--repeats", str(options.repeats)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
                print(f"{name} cannot do {3 * molecules} atoms: {reason}")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            results[name].append(row)
            print(
                f"{name:30s} {row['atoms']:5d} atoms, {row['neighbours']:4.0f} neighbours: "
                f"{1e3 * row['seconds'] / row['atoms']:7.2f} ms an atom, {row['MiB']:7.0f} MiB"
            )
    if options.output:
        about = {"torch": torch.__version__, "threads": 1}
        options.output.write_text(json.dumps(about | {"points": results}, indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()

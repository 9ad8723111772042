"""Milliseconds per MD step through ASE: lkm-calc, uncompiled and compiled, and other packages.

The force fields are interleaved in one process and compute forces of the same moving atoms, so that
other load on the machine affects all of them; compare ratios to torch-geometric's DimeNet++.
Weights are random, and each package uses its default settings (benchmarks/peers.py) and its own
neighbour list. Packages that cannot be installed in one environment are timed in several, with one
JSON file each, and plotted together.

    python -m benchmarks.md_step aspirin.xyz chignolin.pdb --output here.json
    python -m benchmarks.md_step --plot md_step.png here.json elsewhere.json
"""

import argparse
import json
import logging
import platform
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import torch
from ase.build import molecule
from ase.calculators.calculator import Calculator
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from lkm_calc import MODELS, Graph, LKMCalculator, build_model, energy_and_forces
from lkm_calc.runtime import choose_device, fast_matmul

from . import official, peers, pyg

BASELINE = "PyG DimeNet++"
MOVE = 0.005
"""Å that an atom moves a step, about that of half a femtosecond at 300 K."""


def water(molecules: int = 333, seed: int = 0) -> ase.Atoms:
    """Return a periodic box of water at 1 g/cm³, molecules on a grid and turned at random."""
    side = (molecules * 18.015 / 0.602214) ** (1 / 3)
    n = int(np.ceil(molecules ** (1 / 3)))
    rng = np.random.default_rng(seed)
    sites = np.argwhere(np.ones((n, n, n)))
    box = ase.Atoms(cell=[side] * 3, pbc=True)
    for site in sites[np.sort(rng.permutation(len(sites))[:molecules])]:
        one = molecule("H2O")
        axis = rng.normal(size=3)
        one.rotate(rng.uniform(0, 360), axis, center="COM")
        one.translate((site + 0.5) * side / n - one.get_center_of_mass())
        box += one
    return box


def calculators(
    dtype: torch.dtype,
    chosen: str,
    atoms: ase.Atoms,
    clones: Path | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Calculator]:
    """Return what there is to compare for a structure, by name.

    Args:
        dtype: Of the weights.
        chosen: "ours", "peers" or "all"; the baseline is always there.
        atoms: A large one is given to torch-geometric with its 32 neighbours.
        clones: Where the repositories of the published networks are, see benchmarks/official.py.
        device: Where ours and the baseline compute; the others take the CPU.
    """
    large = len(atoms) > 500
    baseline = pyg.PyGCalculator(dtype, 32 if large else None, device)
    found: dict[str, Calculator] = {BASELINE: baseline}
    if chosen in ("all", "ours"):
        for name in MODELS:
            torch.manual_seed(0)
            model = build_model(name).to(dtype).requires_grad_(False)
            found[name] = LKMCalculator(model, str(device))
            found[f"{name}, compiled"] = LKMCalculator(model, str(device), compile=True)
    if chosen in ("all", "peers"):
        for name, build in peers.available().builders.items():
            found[name] = build(dtype)
    if clones is not None and not atoms.pbc.any():
        for name, published in official.OFFICIAL.items():
            found[name] = official.OfficialCalculator(published(clones), dtype)
    return found


def measure(
    atoms: ase.Atoms, found: Mapping[str, Calculator], budget: float, label: str
) -> dict[str, dict[str, float]]:
    """Return seconds a step and times faster than the baseline, medians, by name."""
    rng = np.random.default_rng(0)
    moving = atoms.copy()
    working = {}
    for name, calculator in found.items():
        try:
            for _ in range(4):  # some compile, or trace, in their first calls
                moving.positions += rng.normal(0, MOVE, moving.positions.shape)
                calculator.get_forces(moving)
        except (RuntimeError, MemoryError) as error:
            if name == BASELINE:
                raise
            logging.warning("%s cannot do %s: %s", name, label, str(error).splitlines()[0])
        else:
            working[name] = calculator
    seconds: dict[str, list[float]] = {name: [] for name in working}
    end = time.perf_counter() + budget
    with tqdm(desc=label) as bar:
        while time.perf_counter() < end or len(seconds[BASELINE]) < 5:
            moving.positions = atoms.positions + rng.normal(0, MOVE, moving.positions.shape)
            for name, calculator in working.items():
                began = time.perf_counter()
                calculator.get_forces(moving)
                seconds[name].append(time.perf_counter() - began)
            bar.update()
    base = np.array(seconds[BASELINE])
    return {
        name: {
            "seconds": float(np.median(taken)),
            "times faster": float(np.median(base / np.array(taken))),
        }
        for name, taken in seconds.items()
    }


def floors(atoms: ase.Atoms) -> dict[str, float]:
    """Return the seconds of the matrix products alone, by the rate of one of their size."""
    a, b = torch.randn(len(atoms) * 15, 128), torch.randn(128, 128)
    taken = []
    with fast_matmul():
        for _ in range(200):
            began = time.perf_counter()
            torch.mm(a, b)
            taken.append(time.perf_counter() - began)
    rate = 2 * a.numel() * 128 / float(np.median(taken))
    found = {}
    for name in MODELS:
        model = build_model(name).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            energy_and_forces(model, Graph.from_atoms(atoms, model.cutoff))
        found[name] = counter.get_total_flops() / rate
    return found


def plot(paths: list[Path], output: Path) -> None:
    """Draw times over that of the baseline, one panel a structure, fastest at the top."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    labels = list(dict.fromkeys(label for run in runs for label in run["structures"]))
    figure = Figure(figsize=(4.2 * len(labels), 5.2), layout="constrained")
    for k, label in enumerate(labels):
        rows: dict[str, float] = {}
        for run in runs:
            for name, row in run["structures"].get(label, {}).get("steps", {}).items():
                rows.setdefault(name, 1 / row["times faster"])
        names = sorted(rows, key=lambda name: -rows[name])
        ours = [name.split(",")[0] in MODELS for name in names]
        axes = figure.add_subplot(1, len(labels), k + 1)
        bars = axes.barh(
            names, [rows[n] for n in names], color=["C1" if own else "C0" for own in ours]
        )
        axes.bar_label(bars, [f"{rows[n]:.2f}" for n in names], padding=2, fontsize=8)
        axes.margins(x=0.15)
        axes.set(title=label, xlabel=f"time per step / {BASELINE}")
        axes.tick_params(axis="y", labelsize=8)
    figure.savefig(output, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="*", help="structures; with --plot, JSON files")
    parser.add_argument("--which", choices=("all", "ours", "peers"), default="all")
    parser.add_argument("--official", type=Path, help="folder of clones: benchmarks/official.py")
    parser.add_argument("--water", type=int, default=0, help="molecules of water in a box, or none")
    parser.add_argument("--device", default="cpu", help="of ours and of torch-geometric's")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=30, help="seconds a structure, at least")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--plot", type=Path, help="draw JSON files into this picture")
    options = parser.parse_args()
    if options.plot:
        plot([Path(name) for name in options.files], options.plot)
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    dtype, device = getattr(torch, options.dtype), choose_device(options.device)
    structures: dict[str, ase.Atoms] = {"ethanol": molecule("CH3CH2OH")}
    for name in options.files:
        structures[Path(name).stem] = ase.io.read(name, index=0)
        structures[Path(name).stem].pbc = False
    if options.water:
        structures[f"water, {3 * options.water} atoms"] = water(options.water)
    results: dict[str, Any] = {}
    for label, atoms in structures.items():
        found = calculators(dtype, options.which, atoms, options.official, device)
        steps = measure(atoms, found, options.budget, label)
        results[label] = {"atoms": len(atoms), "steps": steps}
        alone = options.threads == 1 and device.type == "cpu"
        if options.which != "peers" and options.dtype == "float32" and alone:
            results[label]["floor seconds"] = floors(atoms)
        print(f"\n{label}, {len(atoms)} atoms: ms a step, times faster than {BASELINE}")
        for name, row in sorted(steps.items(), key=lambda item: item[1]["seconds"]):
            floor = results[label].get("floor seconds", {}).get(name.split(",")[0])
            over = f"  {row['seconds'] / floor:.1f} times its matrix products" if floor else ""
            print(f"  {name:24s} {1e3 * row['seconds']:9.2f} {row['times faster']:7.2f}{over}")
    print("not installed:", ", ".join(peers.available().missing.values()) or "none")
    if options.output:
        about = {
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "dtype": options.dtype,
            "threads": options.threads,
            "device": str(device),
        }
        options.output.write_text(json.dumps(about | {"structures": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Force errors versus the time of an MD step: the trade-off between accuracy and cost.

Each model file is evaluated on labelled test frames of a molecule and timed on it through ASE,
uncompiled and compiled, interleaved with torch-geometric's DimeNet++ and with packages whose
published errors are for the architecture that is timed. Published errors of more accurate models,
which are larger than those timed here, are shown as lines without a time.

    python -m benchmarks.accuracy_cost rmd17_ethanol_test_01.npz rmd17-ethanol \
        run/model.safetensors --molecule ethanol --output ethanol.json
    python -m benchmarks.accuracy_cost --plot accuracy_cost.png ethanol.json aspirin.json
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import ase
import torch
from ase.calculators.calculator import Calculator
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lkm_calc import LKMCalculator
from train.data import GraphFrames
from train.formats import read_frames
from train.report import errors_of, predict

from . import peers, pyg
from .md_step import BASELINE, measure

KCAL = 43.364
"""meV in a kcal/mol."""

SAME_SIZE = {
    # MD17's original labels, 1000 frames: Schütt et al. 2021 (arXiv:2102.03150), table 2; 128
    # features, three interactions and 5 Å, as benchmarks/peers.py has it.
    "PaiNN": {"ethanol": 0.230 * KCAL, "aspirin": 0.371 * KCAL},
}
"""Published force errors in meV/Å of peers that are timed here at their published size."""

LEADERS = {
    # rMD17, 1000 frames: Batatia et al. 2022 (NeurIPS), table 2.
    "MACE": {"ethanol": 2.1, "aspirin": 6.6},
    "NequIP": {"ethanol": 2.8, "aspirin": 8.2},
}


def force_error(calculator: LKMCalculator, path: str) -> float:
    """Return the mean absolute error of the forces in meV/Å."""
    data = GraphFrames(read_frames(path), calculator.model, calculator.model.device)
    error = errors_of(predict(calculator.model, data, 16)).force_mae
    if error is None:
        raise SystemExit(f"{path} has no forces.")
    return error


def points(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return name, error and relative time of every model and peer."""
    frames = read_frames(options.frames)
    atoms = ase.Atoms(frames.numbers[: frames.starts[1]], frames.positions[: frames.starts[1]])
    found: dict[str, Calculator] = {BASELINE: pyg.PyGCalculator()}
    errors: dict[str, float] = {}
    about: dict[str, dict[str, Any]] = {}
    for path in options.models:
        calculator = LKMCalculator(path, "cpu")
        model = calculator.model
        widths = ("hidden", "num_layers", "num_blocks")
        name = f"{path if len(path) < 30 else Path(path).parent.name} ({model.name})"
        size = " × ".join(str(model.hypers[k]) for k in widths if k in model.hypers)
        errors[name] = force_error(calculator, options.frames)
        found[name] = calculator
        found[f"{name}, compiled"] = LKMCalculator(path, "cpu", compile=True)
        about[name] = about[f"{name}, compiled"] = {"architecture": model.name, "size": size}
    for name, build in peers.available().builders.items():
        if options.molecule in SAME_SIZE.get(name, {}):
            found[name] = build(torch.float32)
            errors[name] = SAME_SIZE[name][options.molecule]
    steps = measure(atoms, found, options.budget, options.molecule)
    return [
        {
            "name": name,
            "force MAE, meV/Å": errors[name.removesuffix(", compiled")],
            "time": 1 / steps[name]["times faster"],
            **about.get(name, {}),
        }
        for name in found
        if name != BASELINE and name in steps
    ]


def plot(paths: list[Path], output: Path) -> None:
    """Draw errors over times, one panel a molecule."""
    figure = Figure(figsize=(5.2 * len(paths), 4.6), layout="constrained")
    for k, path in enumerate(paths):
        run = json.loads(path.read_text(encoding="utf-8"))
        axes = figure.add_subplot(1, len(paths), k + 1)
        architectures = sorted({p["architecture"] for p in run["points"] if "architecture" in p})
        for point in run["points"]:
            compiled = point["name"].endswith(", compiled")
            own = "architecture" in point
            colour = f"C{architectures.index(point['architecture'])}" if own else "k"
            at = point["time"], point["force MAE, meV/Å"]
            axes.plot(
                *at,
                "s" if compiled else "o" if own else "^",
                color=colour,
                markerfacecolor="none" if not own else None,
            )
            if compiled or not own:
                file = Path(point["name"].split(" (")[0]).stem
                label = f"{file}, {point['size']}" if own else f"{file}, published"
                axes.annotate(label, at, xytext=(5, 4), textcoords="offset points", fontsize=7)
        for shape, colour, label in (
            *(("o", f"C{n}", name) for n, name in enumerate(architectures)),
            ("s", "0.6", "compiled"),
        ):
            axes.plot([], [], shape, color=colour, label=label)
        for name, published in LEADERS.items():
            error = published.get(run["molecule"])
            if error:
                axes.axhline(error, color="0.6", linewidth=0.8, linestyle="--")
                axes.annotate(
                    f"{name}, published",
                    (1, error),
                    xycoords=("axes fraction", "data"),
                    xytext=(-3, 2),
                    textcoords="offset points",
                    ha="right",
                    fontsize=7,
                )
        axes.set(
            xscale="log",
            yscale="log",
            title=run["molecule"],
            xlabel=f"time of a step / {BASELINE} of published size",
            ylabel="force MAE on test frames, meV/Å",
        )
        axes.margins(x=0.25)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=7, loc="lower left")
    figure.savefig(output, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("frames", help="labelled test frames; with --plot, a JSON file")
    parser.add_argument("models", nargs="*", help="model files; with --plot, JSON files")
    parser.add_argument("--molecule", default="", help="its name, for published figures")
    parser.add_argument("--budget", type=float, default=30, help="seconds, at least")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--plot", type=Path, help="draw JSON files into this picture")
    options = parser.parse_args()
    if options.plot:
        plot([Path(name) for name in (options.frames, *options.models)], options.plot)
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = points(options)
    print(f"\n{options.molecule}: force MAE in meV/Å, time of a step over that of {BASELINE}")
    for point in sorted(found, key=lambda p: p["time"]):
        error, time = point["force MAE, meV/Å"], point["time"]
        print(f"  {point['name']:50s} {error:7.1f} {time:7.2f}")
    if options.output:
        text = json.dumps({"molecule": options.molecule, "points": found}, indent=1)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

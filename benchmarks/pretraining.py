"""Force errors against the number of training frames, with and without pretraining.

    python -m benchmarks.pretraining --train rmd17_ethanol_train_01.npz \
        --test rmd17_ethanol_test_01.npz --output ethanol.json
    python -m benchmarks.pretraining --plot pretraining.png ethanol.json aspirin.json

For each seed, a model is pretrained once, on dynamics that start from the smallest training set,
and finetuned on training sets of several sizes; others start from random weights. All options are
the defaults but the number of epochs, which grows as the set shrinks, see :func:`epochs_for`. The
50 validation frames are not training frames. Continues where it was interrupted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from train.config import config_from_table, merge
from train.fit import fit

VALIDATION = 50
"""Number of validation frames."""
FULL, EPOCHS = 950, 150
"""Number of frames of the bundled models, and their epochs."""
PUBLISHED = {
    # Batatia et al. 2022 (NeurIPS): frames and force MAE in meV/Å.
    "ethanol": {"MACE": {50: 32.6, 950: 2.1}, "NequIP": {950: 2.8}},
    "aspirin": {"MACE": {50: 43.9, 950: 6.6}, "NequIP": {950: 8.2}},
}
"""Published errors for comparison; 950 training and 50 validation frames, or 50 training frames."""


def epochs_for(frames: int) -> int:
    """Return the epochs for a number of frames: steps grow with its square root."""
    return round(EPOCHS * (FULL / frames) ** 0.5)


def errors(
    options: argparse.Namespace, frames: int, seed: int, changes: dict[str, Any]
) -> dict[str, float]:
    """Train, or continue a training, and return its errors on the test frames."""
    name = next(iter(changes), "scratch")
    directory = options.work / f"{name}-{frames}-{seed}"
    common = {
        "data": {
            "train": str(options.train),
            "test": str(options.test),
            "n_train": frames,
            "n_validation": VALIDATION,
        },
        "optimiser": {"epochs": epochs_for(frames)},
        "run": {"directory": str(directory), "seed": seed, "validate_every": 10},
    }
    result = directory / "result.json"
    if not result.exists() and fit(config_from_table(merge(common, changes))) is None:
        raise SystemExit("Stopped. Run the same command to continue.")
    found: dict[str, float] = json.loads(result.read_text())["test_errors"]
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the errors by kind of start, number of frames and seed."""
    sizes, found = sorted(options.frames), {"scratch": {}, "pretrained": {}}
    if options.output and options.output.exists():
        found |= json.loads(options.output.read_text(encoding="utf-8"))
    first = {"pretraining": {"calculator": options.calculator}}
    for seed in options.seeds:
        start = options.work / f"pretraining-{sizes[0]}-{seed}" / "pretraining/model.safetensors"
        for frames in sizes:
            pretrained = first if frames == sizes[0] else {"run": {"finetune": str(start)}}
            for kind, changes in (("pretrained", pretrained), ("scratch", {})):
                if kind == "pretrained" or options.scratch:
                    by_seed = found[kind].setdefault(str(frames), {})
                    by_seed[str(seed)] = errors(options, frames, seed, changes)
                    print(kind, frames, "frames, seed", seed, by_seed[str(seed)])
    named = {"molecule": options.train.stem.split("_")[1], "calculator": options.calculator}
    return found | named


def table(results: dict[str, Any]) -> str:
    """Return means and standard deviations over seeds as lines of text."""
    lines = []
    for kind in ("scratch", "pretrained"):
        for frames, by_seed in results[kind].items():
            row = f"{results['molecule']}, {frames} frames, {kind}, {len(by_seed)} seeds:"
            for key in ("force_mae", "force_rmse", "energy_mae"):
                values = [figures[key] for figures in by_seed.values()]
                spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
                row += f"  {key} {np.mean(values):.2f} ± {spread:.2f}"
            lines.append(row)
    return "\n".join(lines)


def plot(sets: list[dict[str, Any]], path: Path) -> None:
    """Draw force errors against numbers of frames, one panel per molecule."""
    figure = Figure(figsize=(4 * len(sets), 3.6), layout="constrained")
    for axes, results in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for kind, label, style in (
            ("scratch", "ACE, random weights", "o--"),
            ("pretrained", f"ACE, pretrained with {results['calculator']}", "o-"),
        ):
            values = {
                int(n): [e["force_mae"] for e in s.values()] for n, s in results[kind].items()
            }
            if values:
                spread = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values.values()]
                means = [np.mean(v) for v in values.values()]
                axes.errorbar(list(values), means, spread, fmt=style, capsize=3, label=label)
        published = PUBLISHED.get(results["molecule"], {})
        for (name, values), marker in zip(published.items(), "*D", strict=False):
            axes.plot(list(values), list(values.values()), marker, ms=9, mfc="none", label=name)
        axes.set(xscale="log", yscale="log", xlabel="training frames", title=results["molecule"])
        axes.set_xticks(
            sorted({int(n) for kind in ("scratch", "pretrained") for n in results[kind]})
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("force MAE on test frames, meV/Å")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train and print, or plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("results", nargs="*", type=Path, help="JSON files to plot")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--train", type=Path, help="training and validation frames")
    parser.add_argument("--test", type=Path, help="test frames")
    parser.add_argument("--calculator", default="gfn2-xtb")
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 200, 950])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--no-scratch", dest="scratch", action="store_false", help="leave it out")
    parser.add_argument("--work", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--output", type=Path, help="JSON file, to which errors are added")
    options = parser.parse_args()
    if options.plot:
        sets = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
        print("\n".join(map(table, sets)))
        plot(sets, options.plot)
        return
    if not (options.train and options.test):
        parser.error("--train and --test are needed")
    torch.set_num_threads(1)
    results = measure(options)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()

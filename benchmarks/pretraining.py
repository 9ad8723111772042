"""Force errors against the number of training frames, from several starts.

    python -m benchmarks.pretraining --train rmd17_ethanol_train_01.npz \
        --test rmd17_ethanol_test_01.npz --output ethanol.json
    python -m benchmarks.pretraining --starts scratch base --steps 3000 --output ethanol.json \
        --base runs/base-without-ethanol/model.safetensors --frames 10 25 50 200 \
        --train rmd17_ethanol_train_01.npz --test rmd17_ethanol_test_01.npz
    python -m benchmarks.pretraining --plot pretraining.png ethanol.json aspirin.json

Trains on sets of several sizes, for each seed, from random weights (``scratch``), from a model that
is pretrained once on dynamics starting from the smallest set (``pretrained``), and from a given
model (``base``, see ``benchmarks.base``). All options are the defaults but the number of epochs,
which grows as the set shrinks, see :func:`epochs_for`; with ``--steps`` all trainings are equally
long. The 50 validation frames are not training frames. Continues where it was interrupted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from train.config import OptimiserConfig, config_from_table, merge
from train.fit import fit

STARTS = {
    "scratch": "random weights",
    "pretrained": "pretrained with {calculator}",
    "base": "from a base model",
}
"""Where trainings start from, and what figures call it."""
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


def epochs_for(frames: int, steps: int | None) -> int:
    """Return the epochs for a number of frames: without ``steps``, they grow with its root."""
    if steps:
        return round(steps / -(-frames // OptimiserConfig().batch_size))
    return round(EPOCHS * (FULL / frames) ** 0.5)


def errors(
    options: argparse.Namespace, start: str, frames: int, seed: int, changes: dict[str, Any]
) -> dict[str, float]:
    """Train, or continue a training, and return its errors on the test frames."""
    directory = options.work / f"{options.name}-{start}-{frames}-{seed}"
    common = {
        "data": {
            "train": str(options.train),
            "test": str(options.test),
            "n_train": frames,
            "n_validation": VALIDATION,
        },
        "optimiser": {"epochs": epochs_for(frames, options.steps)},
        "run": {"directory": str(directory), "seed": seed, "validate_every": 10},
    }
    # A finished training with other options is refused.
    if fit(config_from_table(merge(common, changes))) is None:
        raise SystemExit("Stopped. Run the same command to continue.")
    found: dict[str, float] = json.loads((directory / "result.json").read_text())["test_errors"]
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the errors by start, number of frames and seed."""
    sizes = sorted(options.frames)
    found: dict[str, Any] = {}
    if options.output and options.output.exists():
        found |= json.loads(options.output.read_text(encoding="utf-8"))
    first = {"pretraining": {"calculator": options.calculator}}
    for seed in options.seeds:
        first_run = options.work / f"{options.name}-pretrained-{sizes[0]}-{seed}"
        model = first_run / "pretraining/model.safetensors"
        for frames in sizes:
            changes = {
                "scratch": {},
                "pretrained": first if frames == sizes[0] else {"run": {"finetune": str(model)}},
                "base": {"run": {"finetune": options.base}},
            }
            for start in options.starts:
                by_seed = found.setdefault(start, {}).setdefault(str(frames), {})
                by_seed[str(seed)] = errors(options, start, frames, seed, changes[start])
                print(start, frames, "frames, seed", seed, by_seed[str(seed)], flush=True)
    return found | {"molecule": options.name, "calculator": options.calculator}


def table(results: dict[str, Any]) -> str:
    """Return means and standard deviations over seeds as lines of text."""
    lines = []
    for start in STARTS:
        for frames, by_seed in results.get(start, {}).items():
            row = f"{results['molecule']}, {frames} frames, {start}, {len(by_seed)} seeds:"
            for key in ("force_mae", "force_rmse", "energy_mae"):
                values = [figures[key] for figures in by_seed.values()]
                spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
                row += f"  {key} {np.mean(values):.2f} ± {spread:.2f}"
            lines.append(row)
    return "\n".join(lines)


def plot(sets: list[dict[str, Any]], path: Path) -> None:
    """Draw force errors against numbers of frames, one panel per molecule."""
    figure = Figure(figsize=(3.4 * len(sets), 3.6), layout="constrained")
    panels = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    for axes, results in zip(panels, sets, strict=True):
        sizes = {int(n) for start in STARTS for n in results.get(start, {})}
        for (start, text), style in zip(STARTS.items(), ("o--", "o-", "s-"), strict=True):
            values = {
                int(n): [e["force_mae"] for e in s.values()]
                for n, s in results.get(start, {}).items()
            }
            if values:
                spread = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values.values()]
                means = [np.mean(v) for v in values.values()]
                label = "ACE, " + text.format_map(results)
                axes.errorbar(list(values), means, spread, fmt=style, capsize=3, label=label)
        published = PUBLISHED.get(results["molecule"], {})
        for (name, values), marker in zip(published.items(), "*D", strict=False):
            shown = {n: value for n, value in values.items() if min(sizes) <= n <= max(sizes)}
            if shown:
                axes.plot(list(shown), list(shown.values()), marker, ms=9, mfc="none", label=name)
        axes.set(xscale="log", yscale="log", xlabel="training frames", title=results["molecule"])
        axes.set_xticks(sorted(sizes))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
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
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=["scratch", "pretrained"])
    parser.add_argument("--base", metavar="MODEL", help="model of the start called base")
    parser.add_argument("--steps", type=int, help="steps of every training")
    parser.add_argument("--name", help="of the molecule; by default from the name of the file")
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
    if "base" in options.starts and not options.base:
        parser.error("--base is needed")
    options.name = options.name or options.train.stem.split("_")[1]
    torch.set_num_threads(1)
    results = measure(options)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()

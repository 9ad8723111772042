"""How well each uncertainty measure predicts force errors.

The measures are, for every model, the latent distance of each atom, the force error expected from
it by the calibration, and the layer disagreement; and for all models together, as a committee, the
spread of the forces. Each is compared with the true force error of the atom (for the committee,
that of the mean): Spearman's rank correlation, and the area under the ROC curve (AUROC) for
detecting the 5 % of atoms with the largest errors; random values give 0 and 0.5. The magnitude of
the predicted force is a baseline that a useful measure must exceed. Also reported are the fraction
of frames flagged by the guards of LKMCalculator, and the mean force error in the others. Models
must be calibrated, by lkm-train fit or lkm-train calibrate.

Frames are passed as NAME=FILE, labelled at the level of theory of the models:

    python -m benchmarks.uncertainty seed1/model.safetensors seed2/model.safetensors \\
        --frames ethanol=rmd17_ethanol_test_01.npz malonaldehyde=rmd17_malonaldehyde_test_01.npz \\
        --output uncertainty
"""

import argparse
import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from lkm_calc import EnergyModel, LKMCalculator, load_model
from lkm_calc.uncertainty import Guard, Thresholds
from train.data import Frames
from train.formats import read_frames

Array = NDArray[np.float64]
Panel = dict[str, tuple[Array, Array]]
"""By label, a measure and the error of each atom."""
WORST = 0.05
"""Share of the atoms that a measure is to find."""


class Outcome(NamedTuple):
    """What a model says of the atoms of frames."""

    forces: Array
    """(atoms, 3) in eV/Å."""
    extras: dict[str, Array]
    """As of the calculator, (atoms) each."""


def outcome(model: EnergyModel, frames: Frames) -> Outcome:
    """Compute forces and measures of uncertainty, as the calculator does."""
    structures = [
        ase.Atoms(frames.numbers[first:last], frames.positions[first:last])
        for first, last in pairwise(frames.starts)
    ]
    found = list(LKMCalculator(model, "cpu").iterate(structures))
    return Outcome(
        np.concatenate([results["forces"] for results, _ in found]),
        {name: np.concatenate([extras[name] for _, extras in found]) for name in found[0].extras},
    )


def auroc(score: Array, wanted: NDArray[np.bool_]) -> float:
    """Return the chance that an atom that is wanted scores higher than one that is not."""
    n = int(wanted.sum())
    return float((rankdata(score)[wanted].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def compare(scores: dict[str, Array], error: Array) -> dict[str, dict[str, float]]:
    """Return rank correlation and AUROC of each measure with the atoms' force errors."""
    worst = error >= np.quantile(error, 1 - WORST)
    return {
        name: {"spearman": float(spearmanr(score, error)[0]), "auroc": auroc(score, worst)}
        for name, score in scores.items()
    }


def judged(
    models: list[EnergyModel], frames: Frames, extras: dict[str, Array], error: Array
) -> dict[str, float]:
    """Return the share of frames that each part of a guard flags, and the error in the others."""
    guard = Guard(models, "warn")
    missed = []
    for first, last in pairwise(frames.starts):
        rows, before = slice(first, last), sum(guard.counts.values())
        atoms = ase.Atoms(frames.numbers[rows], frames.positions[rows])
        with warnings.catch_warnings(action="ignore"):
            guard(atoms, {name: values[rows] for name, values in extras.items()})
        if sum(guard.counts.values()) == before:
            missed.append(error[rows])
    names = ("force_spread" if len(models) > 1 else "latent_distance", "closest")
    found = {name: guard.counts.get(name, 0) / len(frames) for name in names}
    found["missed_error"] = float(np.concatenate(missed).mean()) if missed else 0.0
    return found


def measure(models: dict[str, EnergyModel], frames: Frames) -> tuple[dict[str, Any], Panel]:
    """Return the figures of a set of frames, and what to draw of the first model and of all."""
    figures: dict[str, Any] = {}
    panel: Panel = {}
    forces = []

    def add(name: str, members: list[EnergyModel], found: Outcome, best: str, label: str) -> None:
        error = np.linalg.norm(found.forces - frames.forces, axis=1)
        size = np.linalg.norm(found.forces, axis=1)
        figures[name] = {
            "mean_error": float(error.mean()),
            "measures": compare(found.extras | {"size of the force": size}, error),
            "guard": judged(members, frames, found.extras, error),
        }
        panel.setdefault(label, (found.extras[best], error))

    for name, model in models.items():
        found = outcome(model, frames)
        forces.append(found.forces)
        add(name, [model], found, "latent_distance", "latent distance of the first model")
    if len(models) > 1:
        spread = np.linalg.norm(np.std(forces, axis=0), axis=1)
        found = Outcome(np.mean(forces, axis=0), {"force_spread": spread})
        label = "force spread of all models, eV/Å"
        add("committee", [*models.values()], found, "force_spread", label)
    return figures, panel


def told(name: str, figures: dict[str, Any]) -> str:
    """Return the figures of a set of frames as a table."""
    lines = [f"{name:42s} error, meV/Å   Spearman   AUROC   flagged frames"]
    for model, one in figures.items():
        guard = one["guard"]
        flags = ", ".join(f"{key} {guard[key]:.1%}" for key in guard if key != "missed_error")
        lines.append(
            f"  {model:40s} {1000 * one['mean_error']:12.1f}{flags:>50s}; error in the others "
            f"{1000 * guard['missed_error']:.1f}"
        )
        for key, found in one["measures"].items():
            lines.append(f"    {key:52s} {found['spearman']:10.2f} {found['auroc']:7.2f}")
    return "\n".join(lines)


def draw(panels: dict[str, Panel], path: Path) -> None:
    """Draw the error of each atom over a measure: a column for each set of frames."""
    labels = list(next(iter(panels.values())))
    figure = Figure(figsize=(3.6 * len(panels), 3.4 * len(labels)), layout="constrained")
    axes = figure.subplots(len(labels), len(panels), squeeze=False, sharex="row", sharey=True)
    for column, (name, panel) in zip(axes.T, panels.items(), strict=True):
        for axis, (label, (score, error)) in zip(column, panel.items(), strict=True):
            axis.loglog(score, error, ".", markersize=2, alpha=0.3)
            axis.set(title=f"{name}: ρ = {spearmanr(score, error)[0]:.2f}", xlabel=label)
        column[0].axvline(Thresholds().latent_distance, color="C3", linewidth=1)
    for axis in axes[:, 0]:
        axis.set_ylabel("error of the force on an atom, eV/Å")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="two or more: also a committee")
    parser.add_argument("--frames", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--most", type=int, default=500, help="frames of each file")
    parser.add_argument("--output", type=Path, default=Path("uncertainty"), help="of .json, .png")
    arguments = parser.parse_args()
    models = {path: load_model(path) for path in arguments.models}
    results, panels = {}, {}
    for text in arguments.frames:
        name, _, path = text.partition("=")
        frames = read_frames(path)
        if frames.forces is None:
            parser.error(f"{path} holds no forces to compare with.")
        results[name], panels[name] = measure(
            models, frames.select(np.arange(min(arguments.most, len(frames))))
        )
        print(told(name, results[name]), flush=True)
    arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw(panels, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()

"""How well each measure of uncertainty tells where the forces are wrong.

For every model the layer disagreement of each atom, absolute and relative to the size of its
embeddings, and the force error that the calibration makes of the absolute one; for all models
together, as a committee, the spread of the forces. Each is compared with the true error of the
atom's force, that of the committee with the error of the mean: Spearman's rank correlation, and the
area under the ROC curve (AUROC) for finding the worst 5 % of atoms; 0 and 0.5 are chance. The size
of the predicted force and the usual error of the element stand beside them: a measure that does no
better tells nothing new. Last the share of frames that the guards of LKMCalculator flag.

Frames are given as NAME=FILE, labelled at the level of theory of the models:

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
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from lkm_calc import EnergyModel, load_model
from lkm_calc.calibration import calibration_of
from lkm_calc.disagreement import layer_disagreement
from lkm_calc.guards import Guard, Thresholds
from train.evaluate import model_output
from train.frames import Frames
from train.loader import GraphFrames
from train.read import read_frames

Array = NDArray[np.float64]
WORST = 0.05
"""Share of the atoms that a measure is to find."""


class Outcome(NamedTuple):
    """What a model says of the atoms of frames."""

    forces: Array
    absolute: Array
    relative: Array


def outcome(model: EnergyModel, frames: Frames, batch_size: int = 32) -> Outcome:
    """Compute forces (atoms, 3) in eV/Å and the disagreement of each atom's layers."""
    data = GraphFrames(frames, model, torch.device("cpu"))
    parts = []
    for indices in data.in_order(batch_size):
        out = model_output(model, data.batch(indices))
        both = (layer_disagreement(out.embeddings, relative) for relative in (False, True))
        parts.append((out.forces.double(), *both))
    return Outcome(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


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


def flagged(
    models: list[EnergyModel], frames: Frames, extras: dict[str, Array], thresholds: Thresholds
) -> dict[str, float]:
    """Return the share of frames that each part of a guard flags."""
    guard = Guard(models, "warn", thresholds=thresholds)
    for first, last in pairwise(frames.starts):
        rows = slice(first, last)
        atoms = ase.Atoms(frames.numbers[rows], frames.positions[rows])
        with warnings.catch_warnings(action="ignore"):
            guard(atoms, {name: values[rows] for name, values in extras.items()})
    names = ("force_spread" if len(models) > 1 else "layer_disagreement", "closest")
    return {name: guard.counts.get(name, 0) / len(frames) for name in names}


def measure(models: dict[str, EnergyModel], frames: Frames) -> tuple[dict[str, Any], Array, Array]:
    """Return the figures of a set of frames, and the committee's spread beside its error."""
    members = {name: outcome(model, frames) for name, model in models.items()}
    figures: dict[str, Any] = {}
    for name, model in models.items():
        found = members[name]
        scores = {
            "layer disagreement": found.absolute,
            "relative disagreement": found.relative,
            "size of the force": np.linalg.norm(found.forces, axis=1),
        }
        error = np.linalg.norm(found.forces - frames.forces, axis=1)
        figures[name] = {"mean_error": float(error.mean())}
        calibration = calibration_of(model)
        if calibration is not None:
            scores["expected error"] = calibration.force_errors(frames.numbers, found.absolute)
            typical = calibration.threshold(frames.numbers, "50")
            scores["element alone"] = calibration.force_errors(frames.numbers, typical)
            figures[name]["flagged"] = flagged(
                [model], frames, {"layer_disagreement": found.absolute}, Thresholds()
            )
        figures[name]["measures"] = compare(scores, error)
    if len(models) < 2:
        return figures, found.absolute, error
    forces = np.stack([found.forces for found in members.values()])
    mean = forces.mean(0)
    spread = np.sqrt(np.square(forces - mean).sum(2).mean(0))
    error = np.linalg.norm(mean - frames.forces, axis=1)
    scores = {"force spread": spread, "size of the force": np.linalg.norm(mean, axis=1)}
    figures["committee"] = {"mean_error": float(error.mean()), "measures": compare(scores, error)}
    if any(map(calibration_of, models.values())):
        figures["committee"]["flagged"] = flagged(
            [*models.values()], frames, {"force_spread": spread}, Thresholds()
        )
    return figures, spread, error


def told(name: str, figures: dict[str, Any]) -> str:
    """Return the figures of a set of frames as a table."""
    lines = [f"{name:42s} error, meV/Å   Spearman   AUROC   flagged"]
    for model, one in figures.items():
        lines.append(f"  {model:40s} {1000 * one['mean_error']:12.1f}")
        lines[-1] += " " * 22 + ", ".join(
            f"{key} {share:.1%}" for key, share in one.get("flagged", {}).items()
        )
        for key, found in one["measures"].items():
            lines.append(f"    {key:52s} {found['spearman']:10.2f} {found['auroc']:7.2f}")
    return "\n".join(lines)


def draw(panels: dict[str, tuple[Array, Array]], label: str, path: Path) -> None:
    """Draw the error of each atom over the measure, a panel for each set of frames."""
    figure = Figure(figsize=(4.2 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (name, (score, error)) in zip(axes, panels.items(), strict=True):
        axis.loglog(score, error, ".", markersize=2, alpha=0.4)
        axis.set(title=f"{name}: rank correlation {spearmanr(score, error)[0]:.2f}", xlabel=label)
    axes[0].set_ylabel("error of the force on an atom, eV/Å")
    figure.savefig(path, dpi=120)


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
        results[name], *panels[name] = measure(
            models, frames.select(np.arange(min(arguments.most, len(frames))))
        )
        print(told(name, results[name]), flush=True)
    label = "force spread of the committee, eV/Å" if len(models) > 1 else "layer disagreement"
    arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw(panels, label, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()

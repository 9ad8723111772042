"""Report of the study of the layers: tables and plots."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as t_distribution

from lkm_calc.files import replacing

from .environments import HOPS
from .tables import mean_and_error, table, written

COMMAND = "python -m studies.layers --data qm9_130831.npz --work runs/layers"
IMAGE = "study-layers.png"

Row = Mapping[str, Any]
Arms = Mapping[float, Sequence[Row]]
"""Results of all seeds, by γ."""
Figures = Callable[[Row], Any]
"""Extracts a number, or one per layer, from the results at a checkpoint."""


def read_arms(results: Path) -> Arms:
    """Return the results in a folder, by γ in ascending order and then by seed."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")]
    arms: dict[float, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["gamma"], row["seed"])):
        arms[row["gamma"]].append(row)
    return arms


def similarity(row: Row, of: str = "carbon_cka") -> list[float]:
    """Return the mean CKA of each layer with the other layers."""
    cka = np.array(row[of])
    means: list[float] = ((cka.sum(1) - 1) / (len(cka) - 1)).tolist()
    return means


def _rank(row: Row) -> float:
    """Return the effective rank of the embeddings of carbon atoms, mean over layers."""
    return float(np.mean(row["carbon_rank"]))


def _cka(row: Row) -> float:
    """Return the CKA of the embeddings of carbon atoms, mean over pairs of layers."""
    return float(np.mean(similarity(row)))


def over_seeds(arms: Sequence[Row], checkpoint: int, figure: Figures) -> tuple[Any, Any]:
    """Return the mean and standard error over seeds of a number or an array."""
    return mean_and_error([figure(arm["checkpoints"][checkpoint]) for arm in arms])


def report(results: Path, images: Path) -> str:
    """Return the Markdown of the section on layers and draw its plot.

    Args:
        results: Folder of the JSON results.
        images: Folder for the plot.
    """
    arms = read_arms(results)
    draw(arms, images / IMAGE)
    first = next(iter(arms.values()))[0]
    plan, last = first["configuration"]["plan"], first["checkpoints"][-1]
    return "\n\n".join(
        (
            "## Effect on the layers",
            f"PAMNet trained on U0 of {plan['n_train']} QM9 molecules in {last['step']} steps, "
            f"{len(last['rank'])} embeddings of width {plan['hidden']} per atom. Evaluated on the "
            f"carbon atoms of {plan['n_probe']} other molecules; mean ± standard error over "
            f"{len(arms[0.0])} seeds (`{COMMAND}`).",
            "Probe: balanced accuracy of a linear classifier on the embeddings. All are means over "
            "layers; changes are paired by seed.",
            _differences(arms),
            f"![Effective rank, CKA, probes and principal components by layer]({IMAGE})",
        )
    )


def _shares(arms: Arms) -> list[str]:
    """Return a label for each checkpoint."""
    rows = next(iter(arms.values()))[0]["checkpoints"]
    return ["untrained" if not row["share"] else f"after {row['share']:.0%}" for row in rows]


def _accuracies(name: str) -> Figures:
    """Return a function that extracts the accuracies of a probe in %, by layer."""
    return lambda row: 100 * np.array(row["probes"][name])


def _mean_of(figure: Figures) -> Figures:
    """Return a function that averages over layers."""
    return lambda row: figure(row).mean()


def changes(arms: Arms, gamma: float, figure: Figures) -> list[Any]:
    """Return the change of a quantity of the trained models relative to γ = 0, for each seed."""
    baseline = {arm["seed"]: figure(arm["checkpoints"][-1]) for arm in arms[0.0]}
    return [
        figure(arm["checkpoints"][-1]) - baseline[arm["seed"]]
        for arm in arms[gamma]
        if arm["seed"] in baseline
    ]


def _change(differences: Sequence[float], digits: int) -> str:
    """Return the mean of paired differences, in bold if significant (95 %, Student's t)."""
    mean, error = mean_and_error(differences)
    text = written(mean, error, digits, "+")
    if np.isnan(error):
        return text
    clear = abs(mean) > t_distribution.ppf(0.975, len(differences) - 1) * error
    return f"**{text}**" if clear else text


def _differences(arms: Arms) -> str:
    """Return the table of the changes by LKM in the trained models."""
    figures: dict[str, tuple[Figures, int]] = {
        "MAE, meV": (lambda row: row["mae"], 0),
        "size of embeddings": (lambda row: row["norm"], 2),
        "effective rank": (_rank, 2),
        "CKA between layers": (_cka, 3),
    }
    for name, words in HOPS.items():
        figures[f"probe: {words}, %"] = (_mean_of(_accuracies(name)), 1)
    mixed = [gamma for gamma in arms if gamma]
    rows = [
        [
            name,
            written(*over_seeds(arms[0.0], -1, figure), digits),
            *(_change(changes(arms, gamma, figure), digits) for gamma in mixed),
        ]
        for name, (figure, digits) in figures.items()
    ]
    return table(["", "γ = 0", *(f"change at γ = {gamma:g}" for gamma in mixed)], rows)


def draw(arms: Arms, path: Path) -> None:
    """Plot effective rank, CKA and probes by layer, and projections of the embeddings."""
    shares = _shares(arms)
    figure = Figure(figsize=(15, 14.5), layout="constrained")
    axes = figure.subplots(4, max(4, len(shares)))
    for k, share in enumerate(shares):
        _by_layer(axes[0, k], arms, k, lambda row: row["carbon_rank"])
        axes[0, k].set_title(f"Effective rank: {share}")
        _by_layer(axes[1, k], arms, k, similarity)
        axes[1, k].set_title(f"CKA with other layers: {share}")
    for k, (name, words) in enumerate(HOPS.items()):
        probes = _accuracies(name)
        _by_layer(axes[2, k], arms, -1, probes)
        untrained = over_seeds(next(iter(arms.values())), 0, probes)[0]
        layers = np.arange(1, len(untrained) + 1)
        axes[2, k].plot(layers, untrained, color="0.5", linestyle="--", label="untrained")
        axes[2, k].axhline(100 / (3 if name == "neighbours" else 2), color="0.8", linewidth=1)
        axes[2, k].set_title(f"Probe: {words}, %")
    for row in axes[:3]:
        used = [panel for panel in row if panel.lines]
        _share_heights(used)
        used[0].legend(frameon=False, fontsize=8)
    gammas = [gamma for gamma, seeds in arms.items() if "projection" in seeds[0]]
    shown = dict.fromkeys((gammas[0], gammas[-1]))
    for k, gamma in enumerate(shown):
        _project(axes[3, 2 * k], axes[3, 2 * k + 1], arms[gamma][0]["projection"], gamma)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _by_layer(axes: Axes, arms: Arms, checkpoint: int, figure: Figures) -> None:
    """Plot a quantity by layer with its standard error, one line per γ."""
    for gamma, seeds in arms.items():
        mean, error = over_seeds(seeds, checkpoint, figure)
        layers = np.arange(1, len(mean) + 1)
        axes.errorbar(layers, mean, error, marker="o", markersize=3, label=f"γ = {gamma:g}")
    axes.set_xlabel("layer")
    axes.grid(alpha=0.25)


def _share_heights(row: Sequence[Axes]) -> None:
    """Set the same range for all panels of a row."""
    low, high = zip(*(axes.get_ylim() for axes in row), strict=True)
    for axes in row:
        axes.set_ylim(min(low), max(high))


def _project(left: Axes, right: Axes, drawn: Row, gamma: float) -> None:
    """Plot carbon atoms coloured by layer, and those of the last layer by bonded neighbours."""
    together, last = np.array(drawn["together"]), np.array(drawn["last"])
    for k, layer in enumerate(together):
        colour = f"C{k}"
        left.scatter(
            layer[:, 0], layer[:, 1], s=8, alpha=0.6, linewidths=0, color=colour, label=f"{k + 1}"
        )
    left.set_title(f"γ = {gamma:g}: PCA, all layers")
    left.legend(frameon=False, fontsize=8, title="layer")
    classes = np.array(drawn["neighbours"])
    for k in np.unique(classes):
        right.scatter(
            last[classes == k, 0],
            last[classes == k, 1],
            s=10,
            alpha=0.7,
            linewidths=0,
            label=f"{k + 2}",
        )
    right.set_title(f"γ = {gamma:g}: PCA, last layer")
    right.legend(frameon=False, fontsize=8, title="neighbours")
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])

"""The tables and the picture of what mixing does to the layers."""

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
"""By γ, the results of the seeds."""
Figures = Callable[[Row], Any]
"""Takes a number, or one a layer, from the figures of a checkpoint."""


def read_arms(results: Path) -> Arms:
    """Return the results in a folder, by γ in ascending order and then by seed."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")]
    arms: dict[float, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["gamma"], row["seed"])):
        arms[row["gamma"]].append(row)
    return arms


def likeness(row: Row, of: str = "carbon_cka") -> list[float]:
    """Return the mean CKA of each layer's embeddings with those of the other layers."""
    cka = np.array(row[of])
    means: list[float] = ((cka.sum(1) - 1) / (len(cka) - 1)).tolist()
    return means


def _rank(row: Row) -> float:
    """Return the mean over layers of the effective rank of carbon atoms' embeddings."""
    return float(np.mean(row["carbon_rank"]))


def _cka(row: Row) -> float:
    """Return the mean over pairs of layers of the CKA of carbon atoms' embeddings."""
    return float(np.mean(likeness(row)))


def over_seeds(arms: Sequence[Row], checkpoint: int, figure: Figures) -> tuple[Any, Any]:
    """Return mean and standard error over seeds of a figure, or of an array of them."""
    return mean_and_error([figure(arm["checkpoints"][checkpoint]) for arm in arms])


def report(results: Path, images: Path) -> str:
    """Return the Markdown of the section on layers and draw its picture.

    Args:
        results: Folder of the arms' JSON files.
        images: Folder for the picture.
    """
    arms = read_arms(results)
    draw(arms, images / IMAGE)
    first = next(iter(arms.values()))[0]
    plan, last = first["configuration"]["plan"], first["checkpoints"][-1]
    return "\n\n".join(
        (
            "## Are the layers washed out?",
            f"PAMNet, {len(last['rank'])} tapped layers of width "
            f"{plan['hidden']}, learns U0 of {plan['n_train']} molecules of QM9 in "
            f"{last['step']} steps; {len(arms[0.0])} seed(s), mean ± standard error. "
            "Arms of one seed have the same molecules, first weights and order, and differences "
            "are paired by seed: in words where they are clear of zero (95 %, Student's t). "
            f"Measured on the carbon atoms of {plan['n_probe']} other molecules, means over "
            f"layers: `{COMMAND}`.",
            _findings(arms),
            "L_KD also falls when the embeddings shrink; rank, CKA and probes do not notice their "
            "size.",
            _summary(arms),
            "Through training:",
            _course(arms),
            "What a linear probe reads out of the embedding of a carbon atom, balanced accuracy in "
            "%, mean over the layers / last layer. Its element tells nothing here: naming the "
            "commonest class, or guessing by the element, gives the first row. Layers with random "
            "weights tell much already.",
            _probes(arms),
            "LKM minus without:",
            _differences(arms),
            f"![Rank, likeness, probes and projections of the layers]({IMAGE})",
        )
    )


def _summary(arms: Arms) -> str:
    """Return the table of the trained models."""
    columns: dict[str, tuple[Figures, int]] = {
        "MAE, meV": (lambda row: row["mae"], 0),
        "L_KD": (lambda row: row["lkm"], 3),
        "size of embeddings": (lambda row: row["norm"], 2),
        "rank, all atoms": (lambda row: np.mean(row["rank"]), 1),
        "rank, carbon": (_rank, 1),
        "rank, carbon, last layer": (lambda row: row["carbon_rank"][-1], 1),
        "CKA, all atoms": (lambda row: np.mean(likeness(row, "cka")), 2),
        "CKA, carbon": (_cka, 2),
        "CKA, first and last": (lambda row: row["carbon_cka"][0][-1], 2),
    }
    rows = [
        [f"{gamma:g}"]
        + [written(*over_seeds(seeds, -1, figure), digits) for figure, digits in columns.values()]
        for gamma, seeds in arms.items()
    ]
    return table(["γ", *columns], rows)


def _course(arms: Arms) -> str:
    """Return the table of rank and CKA at each checkpoint."""
    shares = _shares(arms)
    rows = []
    for gamma, seeds in arms.items():
        for name, figure, digits in (
            ("rank", _rank, 1),
            ("CKA", _cka, 2),
            ("MAE, meV", lambda row: row["mae"], 0),
        ):
            cells = [written(*over_seeds(seeds, k, figure), digits) for k in range(len(shares))]
            rows.append([f"{name}, γ = {gamma:g}", *cells])
    return table(["", *shares], rows)


def _shares(arms: Arms) -> list[str]:
    """Return the checkpoints in words."""
    rows = next(iter(arms.values()))[0]["checkpoints"]
    return ["untrained" if not row["share"] else f"after {row['share']:.0%}" for row in rows]


def _accuracies(name: str) -> Figures:
    """Return what takes a probe's accuracies in %, by layer."""
    return lambda row: 100 * np.array(row["probes"][name])


def _both(name: str) -> Figures:
    """Return what takes a probe's accuracies in %, mean over layers and that of the last."""
    return lambda row: 100 * np.array([np.mean(row["probes"][name]), row["probes"][name][-1]])


def _mean_of(figure: Figures) -> Figures:
    """Return what takes the mean over layers."""
    return lambda row: figure(row).mean()


def _last_of(figure: Figures) -> Figures:
    """Return what takes the last layer's."""
    return lambda row: figure(row)[-1]


def _probes(arms: Arms) -> str:
    """Return the table of the probes' accuracies."""
    chance = {name: 100 / (3 if name == "neighbours" else 2) for name in HOPS}
    rows = [["guessing", *(f"{value:.1f}" for value in chance.values())]]
    for name, checkpoint in (("untrained", 0), ("γ = {:g}", -1)):
        for gamma, seeds in arms.items():
            cells = []
            for hop in HOPS:
                mean, error = over_seeds(seeds, checkpoint, _both(hop))
                cells.append(" / ".join(written(m, e, 1) for m, e in zip(mean, error, strict=True)))
            rows.append([name.format(gamma), *cells])
            if not checkpoint:  # the same weights in all arms of a seed
                break
    return table(["", *HOPS.values()], rows)


def _findings(arms: Arms) -> str:
    """Return in words what mixing changes in the trained models."""
    accuracies = [_mean_of(_accuracies(name)) for name in HOPS]
    questions: dict[str, tuple[Figures, int]] = {
        "Do layers use fewer directions? Effective rank": (_rank, 1),
        "Do layers become alike? CKA": (_cka, 2),
        "Is less to be read out of them? Mean accuracy of the probes in %": (
            lambda row: np.mean([figure(row) for figure in accuracies]),
            1,
        ),
        "Is the model better for it? MAE in meV": (lambda row: row["mae"], 0),
    }
    lines = []
    for question, (figure, digits) in questions.items():
        plain = over_seeds(arms[0.0], -1, figure)[0]
        answers = [
            f"{_verdict(changes(arms, gamma, figure), digits)} with γ = {gamma:g}"
            for gamma in arms
            if gamma
        ]
        lines.append(f"- {question}, without LKM {plain:.{digits}f}: {'; '.join(answers)}.")
    return "\n".join(lines)


def changes(arms: Arms, gamma: float, figure: Figures) -> list[Any]:
    """Return by how much a figure of the trained models differs from that of γ = 0, by seed."""
    baseline = {arm["seed"]: figure(arm["checkpoints"][-1]) for arm in arms[0.0]}
    return [
        figure(arm["checkpoints"][-1]) - baseline[arm["seed"]]
        for arm in arms[gamma]
        if arm["seed"] in baseline
    ]


def _verdict(differences: Sequence[float], digits: int) -> str:
    """Return in words whether paired differences are clear of zero, 95 % by Student's t."""
    mean, error = mean_and_error(differences)
    size = written(mean, error, digits, "+")
    if np.isnan(error):
        return f"{size} (one seed)"
    clear = abs(mean) > t_distribution.ppf(0.975, len(differences) - 1) * error
    return f"{'**rises**' if mean > 0 else '**falls**'}, {size}," if clear else f"unclear, {size},"


def _differences(arms: Arms) -> str:
    """Return the table of paired differences to the arms without LKM, of the trained models."""
    figures: dict[str, tuple[Figures, int]] = {
        "MAE, meV": (lambda row: row["mae"], 0),
        "rank": (_rank, 2),
        "CKA": (_cka, 3),
    }
    for name, words in HOPS.items():
        accuracies = _accuracies(name)
        figures[f"{words}, %"] = (_mean_of(accuracies), 1)
        figures[f"{words}, last layer, %"] = (_last_of(accuracies), 1)
    mixed = [gamma for gamma in arms if gamma]
    rows = []
    for name, (figure, digits) in figures.items():
        found = (mean_and_error(changes(arms, gamma, figure)) for gamma in mixed)
        rows.append([name, *(written(mean, error, digits, "+") for mean, error in found)])
    return table(["", *(f"γ = {gamma:g}" for gamma in mixed)], rows)


def draw(arms: Arms, path: Path) -> None:
    """Draw rank, likeness and probes by layer, and projections, into one picture."""
    shares = _shares(arms)
    figure = Figure(figsize=(15, 14.5), layout="constrained")
    axes = figure.subplots(4, max(4, len(shares)))
    for k, share in enumerate(shares):
        _by_layer(axes[0, k], arms, k, lambda row: row["carbon_rank"])
        axes[0, k].set_title(f"Effective rank: {share}")
        _by_layer(axes[1, k], arms, k, likeness)
        axes[1, k].set_title(f"CKA with others: {share}")
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
    """Draw a figure of each layer with its standard error, a line a γ."""
    for gamma, seeds in arms.items():
        mean, error = over_seeds(seeds, checkpoint, figure)
        layers = np.arange(1, len(mean) + 1)
        axes.errorbar(layers, mean, error, marker="o", markersize=3, label=f"γ = {gamma:g}")
    axes.set_xlabel("layer")
    axes.grid(alpha=0.25)


def _share_heights(row: Sequence[Axes]) -> None:
    """Give the panels of a row the same range."""
    low, high = zip(*(axes.get_ylim() for axes in row), strict=True)
    for axes in row:
        axes.set_ylim(min(low), max(high))


def _project(left: Axes, right: Axes, drawn: Row, gamma: float) -> None:
    """Scatter carbon atoms by layer, and those of the last layer by their neighbours."""
    together, last = np.array(drawn["together"]), np.array(drawn["last"])
    for k, layer in enumerate(together):
        colour = f"C{k}"
        left.scatter(
            layer[:, 0], layer[:, 1], s=8, alpha=0.6, linewidths=0, color=colour, label=f"{k + 1}"
        )
    left.set_title(f"γ = {gamma:g}: main axes of all layers")
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
    right.set_title(f"γ = {gamma:g}: main axes of the last layer")
    right.legend(frameon=False, fontsize=8, title="neighbours")
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])

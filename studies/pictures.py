"""Plots of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.report import save_figure

from .effects import Mean, Result, Setting, effect, mean

NUMBER = ["1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "1", "100"]
"""Labels of γ that are numbers."""
TICKS = [-50, -20, -10, -5, 0, 5, 10, 20, 50, 100]
"""Of changes in %."""
_SIZES = ("50", "200", "950")
_MUON = {"optimiser": "Muon 4e-3"}
COLOURS = {"force_mae": "tab:blue", "energy_mae": "tab:orange"}
NAMES = {"force_mae": "forces", "energy_mae": "energy"}


class Group(NamedTuple):
    """Settings of a study that are one row of the summary."""

    name: str
    study: str
    gamma: str
    labels: Mapping[str, str]
    """Values of axes that its settings have."""


GROUPS = [
    *(Group(f"ACE, rMD17, {n} frames", "ace", "auto-0.01", {"frames": n}) for n in _SIZES),
    Group("DimeNet++, rMD17, 50 frames", "optimiser", "auto-0.1", {"frames": "50", **_MUON}),
    *(
        Group(f"invariant models, rMD17, 200 frames, {n} steps", "length", "auto-0.1", {"steps": n})
        for n in ("2000", "6000", "20000")
    ),
    Group("DimeNet++, rMD17, 950 frames", "optimiser", "auto-0.1", {"frames": "950", **_MUON}),
    Group("PAMNet, Chignolin, short training", "chignolin", "auto-0.1", {}),
    Group("PAMNet, QM9, 1,500 molecules", "qm9", "0.02", {}),
]
"""Rows of the summary, which are left out while they have no results."""


def plot_summary(studies: Mapping[str, Sequence[Setting]], path: Path) -> None:
    """Draw the mean change of errors by LKM of each group, with standard errors.

    They are those over settings, or over seeds for groups of one setting.
    """
    rows = [(group.name, _changes(group, studies[group.study])) for group in GROUPS]
    rows = [(name, changes) for name, changes in rows if changes]
    figure = Figure(figsize=(8, 0.9 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    _draw_changes(axes, rows, markersize=5, fontsize=8)
    axes.set_xlabel("change of the MAE by LKM, %; left of 0 LKM helps")
    save_figure(figure, path)


def _changes(group: Group, found: Sequence[Setting]) -> dict[str, Mean]:
    """Return the mean changes of a group by error, those there are results of."""
    changes = {}
    for metric in COLOURS:
        effects = [
            one
            for setting in found
            if group.labels.items() <= setting.labels.items()
            and (one := effect(setting, group.gamma, metric))
        ]
        if effects:
            several = len(effects) > 1
            changes[metric] = mean([one.value for one in effects]) if several else effects[0]
    return changes


def plot_effects(studies: Mapping[str, Sequence[Setting]], path: Path) -> None:
    """Draw the change of errors by LKM of every setting, with standard errors over seeds."""
    rows: list[tuple[str, dict[str, Mean]]] = []
    known: list[Mapping[str, Result]] = []
    for name, found in studies.items():
        for setting in found if name != "gamma" else ():
            for gamma in setting.gammas:
                results = setting.results[gamma]
                change = effect(setting, gamma, "energy_mae")
                if gamma == "0" or results in known or not change or abs(change.value) >= TICKS[-1]:
                    continue
                known.append(results)
                label = ", ".join(setting.labels.values())
                changes = {m: one for m in COLOURS if (one := effect(setting, gamma, m))}
                rows.append((f"{name}: {label}, γ = {gamma}", changes))
    figure = Figure(figsize=(9, 1.2 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    _draw_changes(axes, rows, markersize=3.5, fontsize=7)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(TICKS[0], TICKS[-1])
    axes.set_xticks(TICKS, [f"{tick:+d}" if tick else "0" for tick in TICKS])
    axes.set_xlabel("change of the mean absolute error by LKM, %; left of 0 LKM helps")
    save_figure(figure, path)


def _draw_changes(
    axes: Axes, rows: Sequence[tuple[str, Mapping[str, Mean]]], markersize: float, fontsize: int
) -> None:
    """Draw changes by error with their standard errors, a labelled row each, first at the top."""
    for metric, shift in (("force_mae", -0.15), ("energy_mae", 0.15)):
        points = [
            (changes[metric].value, k + shift, changes[metric].error)
            for k, (_, changes) in enumerate(rows)
            if metric in changes
        ]
        if points:
            x, y, error = np.array(points).T
            axes.errorbar(
                x, y, xerr=np.nan_to_num(error), fmt="o", markersize=markersize, linewidth=1,
                color=COLOURS[metric], label=NAMES[metric],
            )  # fmt: skip
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=fontsize)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def plot_gamma(found: Sequence[Setting], path: Path) -> None:
    """Draw errors and the cosine between layers by γ, for each kind of distance."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, metric in zip(panels, NAMES, strict=False):
        for setting in found:
            points = [
                (float(gamma), one.value, one.error)
                for gamma in NUMBER
                if (one := effect(setting, gamma, metric))
            ]
            if points:
                x, y, error = np.array(points).T
                axes.errorbar(x, y, yerr=np.nan_to_num(error), fmt="o-", markersize=3.5,
                              capsize=2, label=setting.labels["distance"])  # fmt: skip
        axes.axhline(0, color="0.4", linewidth=0.8)
        axes.set(xscale="log", xlabel="γ", ylabel=f"change of the {NAMES[metric]} MAE, %")
        axes.set_yscale("symlog", linthresh=10)
        axes.set_yticks(TICKS, [f"{tick:+d}" if tick else "0" for tick in TICKS])
    for setting in found:
        cosines = {g: _cosine(setting, g) for g in NUMBER if setting.results.get(g)}
        if cosines:
            x, y = list(map(float, cosines)), list(cosines.values())
            panels[2].plot(x, y, "o-", markersize=3.5, label=setting.labels["distance"])
    if found[0].results.get("0"):
        panels[2].axhline(_cosine(found[0], "0"), color="0.4", linewidth=0.8, label="γ = 0")
    panels[2].set(xscale="log", xlabel="γ", ylabel="cosine between layers")
    for axes in panels:
        axes.grid(alpha=0.25)
    if panels[2].get_legend_handles_labels()[0]:
        panels[2].legend(frameon=False)
    save_figure(figure, path)


def _cosine(setting: Setting, gamma: str) -> float:
    """Return the mean cosine between layers, over seeds."""
    return fmean(result["layers"]["cosine"] for result in setting.results[gamma].values())

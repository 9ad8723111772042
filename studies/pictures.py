"""Plots of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from train.report import save_figure

from .effects import Setting, effect

NUMBER = ["1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "1", "100"]
"""Labels of γ that are numbers."""
TICKS = [-50, -20, -10, -5, 0, 5, 10, 20, 50, 100]
"""Of changes in %."""
COLOURS = {"force_mae": "tab:blue", "energy_mae": "tab:orange"}
NAMES = {"force_mae": "forces", "energy_mae": "energy"}


def plot_effects(studies: Mapping[str, Sequence[Setting]], path: Path) -> None:
    """Draw the change of errors by LKM of every setting, with standard errors over seeds."""
    rows: list[tuple[str, Setting, str]] = []
    for name, found in studies.items():
        for setting in found if name != "gamma" else ():
            for gamma in setting.gammas:
                known = any(setting.results[gamma] == s.results.get(g) for _, s, g in rows)
                change = effect(setting, gamma, "energy_mae")
                if gamma != "0" and not known and change and abs(change.value) < TICKS[-1]:
                    label = ", ".join(setting.labels.values())
                    rows.append((f"{name}: {label}, γ = {gamma}", setting, gamma))
    figure = Figure(figsize=(9, 1.2 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for metric, shift in (("force_mae", -0.15), ("energy_mae", 0.15)):
        points = [
            (one.value, k + shift, one.error)
            for k, (_, setting, gamma) in enumerate(rows)
            if (one := effect(setting, gamma, metric))
        ]
        if points:
            x, y, error = np.array(points).T
            axes.errorbar(
                x, y, xerr=np.nan_to_num(error), fmt="o", markersize=3.5, linewidth=1,
                color=COLOURS[metric], label=NAMES[metric],
            )  # fmt: skip
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(TICKS[0], TICKS[-1])
    axes.set_xticks(TICKS, [f"{tick:+d}" if tick else "0" for tick in TICKS])
    axes.set_xlabel("change of the mean absolute error by LKM, %; left of 0 LKM helps")
    axes.grid(axis="x", alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    save_figure(figure, path)


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

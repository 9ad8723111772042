"""Plots of a data report."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lkm_calc.files import replacing

from ..data import Frames
from .checks import MIN_CONTACT, Floats
from .figures import Figures, Report

MAX_POINTS = 20_000
"""Maximum number of points in a scatter plot."""


def plot_report(frames: Frames, report: Report, path: Path) -> None:
    """Plot energies, forces, shortest distances and ΔE against the work of the forces.

    Args:
        frames: The examined frames.
        report: Result of :func:`diagnose` for them.
        path: Output file; the suffix selects the format.
    """
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 3)
    faults = sorted({f.name for f in report.findings if f.severity == "fault"})
    verdict = f"faults: {', '.join(faults)}" if faults else "no faults"
    figure.suptitle(f"{len(frames)} frames, {verdict}", wrap=True)
    if report.figures is not None:
        _trace(upper[0], report.figures)
        _energy_histogram(upper[1], report.figures)
        _work(upper[2], report.figures)
        _force_histograms(lower[0], lower[1], frames, report.figures)
        _contacts(lower[2], report.figures)
    for axes in (*upper, *lower):
        axes.grid(alpha=0.25)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=140)


def _trace(axes: Axes, figures: Figures) -> None:
    stride = -(-len(figures.usable) // MAX_POINTS)
    axes.scatter(
        figures.usable[::stride],
        figures.residuals[::stride],
        s=5,
        alpha=0.5,
        linewidths=0,
        rasterized=True,
    )
    axes.set(title="Energy minus reference energies", xlabel="frame", ylabel="eV")


def _energy_histogram(axes: Axes, figures: Figures) -> None:
    axes.hist(figures.residuals, bins=50)
    axes.set(title="Distribution of these energies", xlabel="eV", ylabel="frames", yscale="log")


def _work(axes: Axes, figures: Figures) -> None:
    axes.set(title="Energy change of similar frames", xlabel="−F·ΔR, eV", ylabel="ΔE, eV")
    pairs = figures.pairs
    if pairs is None:
        _say(axes, "no test: no forces, or\ntoo few similar frames")
        return
    end = float(np.abs(pairs.work).max())
    axes.axline((0, 0), slope=1, color="0.6", linewidth=1, label="slope 1 (ideal)")
    axes.plot(
        [-end, end],
        [-pairs.slope * end, pairs.slope * end],
        color="C3",
        linewidth=1,
        linestyle="--",
        label=f"slope {pairs.slope:.2f}, correlation {pairs.correlation:.2f}",
    )
    axes.scatter(pairs.work, pairs.differences, s=6, alpha=0.5, linewidths=0, rasterized=True)
    axes.legend(fontsize="small", loc="best")


def _force_histograms(left: Axes, right: Axes, frames: Frames, figures: Figures) -> None:
    left.set(title="Force per atom", xlabel="eV/Å", ylabel="atoms", yscale="log")
    right.set(title="Largest force per frame", xlabel="eV/Å", ylabel="frames", yscale="log")
    if frames.forces is None or not len(figures.largest_force):
        for axes in (left, right):
            _say(axes, "no forces")
        return
    norms: Floats = np.linalg.norm(frames.forces, axis=1)
    left.hist(norms[np.isfinite(norms)], bins=60)
    right.hist(figures.largest_force, bins=50)


def _contacts(axes: Axes, figures: Figures) -> None:
    axes.set(
        title="Shortest distance per frame",
        xlabel="distance / sum of covalent radii",
        ylabel="frames",
        yscale="log",
    )
    known = figures.contacts[np.isfinite(figures.contacts)]
    if not len(known):
        _say(axes, "no atoms close to each other")
        return
    axes.hist(known, bins=50)
    axes.axvline(MIN_CONTACT, color="C3", linewidth=1, linestyle="--", label="too close")
    axes.legend(frameon=False, fontsize="small")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="0.4")

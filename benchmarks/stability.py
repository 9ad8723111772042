"""Stability of long MD runs, and comparison of structures with reference frames.

For each output folder of ``lkm-calc md``: broken bonds in any frame (longer than 1.5 times their
length in the first one), mean temperature, drift of the total energy if it is conserved, and the
distribution of all interatomic distances compared with that of the reference frames. MD17 and rMD17
were sampled at 500 K.

    lkm-calc md rmd17-ethanol ethanol.xyz --temperature 500 --relax --ps 100 --output eth500
    lkm-calc md rmd17-ethanol ethanol.xyz --ensemble nve --dtype float64 --relax --ps 100 \\
        --output ethnve
    python -m benchmarks.stability --run eth500=rmd17_ethanol_train_01.npz \\
        --run ethnve=rmd17_ethanol_train_01.npz --plot docs/stability.png
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import read
from ase.neighborlist import natural_cutoffs, neighbor_list
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from train.formats import read_frames

BROKEN = 1.5
"""Length of a bond over that in the first frame from which on it is broken."""
BINS = np.linspace(0.8, 7.0, 249)
"""Edges of the histogram of distances in Å."""
COLUMNS, DPI = 5, 80
"""Runs side by side, and resolution of the picture."""

Array = NDArray[np.float64]


def distances(positions: Array) -> Array:
    """Return the distances of all pairs, (frames, pairs), of positions (frames, atoms, 3)."""
    i, j = np.triu_indices(positions.shape[1], 1)
    return np.linalg.norm(positions[:, i] - positions[:, j], axis=2)


def log_of(folder: Path) -> dict[str, Array]:
    """Return the columns of a run's log."""
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def analyse(folder: Path, reference: str) -> dict[str, Any]:
    """Return the figures of a run, and what is drawn of it."""
    settings = json.loads((folder / "restart.json").read_text(encoding="utf-8"))["identity"]
    frames = read(folder / settings["trajectory"], ":")
    positions = np.array([atoms.positions for atoms in frames])
    found = distances(positions)
    bonds = set(zip(*neighbor_list("ij", frames[0], natural_cutoffs(frames[0])), strict=True))
    i, j = np.triu_indices(len(frames[0]), 1)
    bonded = np.array([pair in bonds for pair in zip(i, j, strict=True)])
    stretch = found[:, bonded] / found[0, bonded]
    labelled = read_frames(reference)
    expected = distances(labelled.positions.reshape(len(labelled), -1, 3))
    histograms = [np.histogram(d, BINS, density=True)[0] for d in (found, expected)]
    log = log_of(folder)
    time, drift = log["time_ps"], log["drift_meV_per_atom"]
    return {
        "name": f"{frames[0].get_chemical_formula()}, {settings['ensemble']}, "
        f"{settings['temperature']:.0f} K",
        "ps": time[-1],
        "frames": len(frames),
        "broken bonds": int((stretch.max(0) > BROKEN).sum()),
        "longest stretch of a bond": float(stretch.max()),
        "mean temperature, K": float(log["temperature_K"].mean()),
        "drift, meV/atom/ps": float(np.polyfit(time, drift, 1)[0])
        if np.isfinite(drift).all()
        else None,
        # 1 where the two are the same, 0 where they have nothing in common.
        "overlap of the distances": float(np.minimum(*histograms).sum() * (BINS[1] - BINS[0])),
        "drawn": (log, *histograms),
    }


def draw(runs: list[dict[str, Any]], output: Path) -> None:
    """Draw distances above and energy or temperature over time below, for each run."""
    columns = min(len(runs), COLUMNS)
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(4.2 * columns, 5.6 * rows), layout="constrained")
    panels: Any = figure.subplots(2 * rows, columns, squeeze=False)
    for k, run in enumerate(runs):
        row, column = divmod(k, columns)
        top, bottom = panels[2 * row : 2 * row + 2, column]
        log, found, expected = run["drawn"]
        middle = (BINS[1:] + BINS[:-1]) / 2
        top.fill_between(middle, expected, color="0.8", label="reference frames, 500 K")
        top.plot(middle, found, color="C3", linewidth=1, label="this run")
        top.set(title=f"{run['name']}, {run['ps']:g} ps", xlabel="distance of two atoms, Å")
        top.set_ylabel("density, 1/Å")
        top.legend(fontsize=7, frameon=False)
        _over_time(bottom, log)
    for axes in panels[2 * rows - 2 :, len(runs) - columns * (rows - 1) :].flat:
        axes.set_visible(False)
    figure.savefig(output, dpi=DPI)


def _over_time(axes: Axes, log: dict[str, Array]) -> None:
    time, drift = log["time_ps"], log["drift_meV_per_atom"]
    if np.isfinite(drift).all():
        slope, offset = np.polyfit(time, drift, 1)
        axes.plot(time, drift, linewidth=0.3, color="0.5")
        axes.plot(time, slope * time + offset, color="C3", label=f"{slope:+.1e} meV/atom/ps")
        axes.set(ylabel="total energy, meV/atom")
    else:
        kelvin = log["temperature_K"]
        axes.plot(time, kelvin, linewidth=0.2, color="0.5")
        axes.axhline(kelvin.mean(), color="C3", label=f"mean {kelvin.mean():.0f} K")
        axes.set(ylabel="temperature, K")
    axes.set(xlabel="time, ps")
    axes.legend(fontsize=7, frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", action="append", required=True, metavar="FOLDER=FRAMES")
    parser.add_argument("--plot", type=Path, help="picture to draw")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    runs = []
    for entry in options.run:
        folder, _, frames = entry.partition("=")
        runs.append(analyse(Path(folder), frames))
    figures = [{k: v for k, v in run.items() if k != "drawn"} for run in runs]
    for row in figures:
        print(row.pop("name"))
        for name, value in row.items():
            print(f"  {name:28s} {'' if value is None else f'{value:.6g}'}")
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")
    if options.plot:
        draw(runs, options.plot)


if __name__ == "__main__":
    main()

"""Interactive page of a simulation."""

import csv
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import ase
import numpy as np
from numpy.typing import NDArray

from ..files import read_structures
from ..page import Page, Plot, Scene, SceneFrame, write_page
from .extrapolation import ExtrapolationLog, ExtrapolationRow

MAX_FRAMES = 500
"""Maximum number of frames of the trajectory on a page."""
MAX_ATOMS = 20_000
"""Maximum number of their atoms."""
MAX_ROWS = 5000
"""Maximum number of points of a curve, and of marked steps."""
QUANTITIES = {
    "temperature_K": ("Temperature", "K"),
    "potential_eV": ("Potential energy, relative to its minimum", "eV"),
    "total_eV": ("Total energy, relative to the same", "eV"),
    "drift_meV_per_atom": ("Drift of the conserved quantity", "meV/atom"),
    "pressure_bar": ("Pressure", "bar"),
    "volume_A3": ("Volume", "Å³"),
}
"""Columns of the log with titles and units."""
MEASURES = {
    "force_spread": "force spread {value:.3g} eV/Å on {atoms} (threshold {threshold:.3g})",
    "latent_distance": "latent distance {value:.3g} on {atoms} (threshold {threshold:.3g})",
    "closest": "{atoms} are {value:.3g} Å apart (threshold {threshold:.3g})",
}
"""Descriptions of the measures of :class:`lkm_calc.uncertainty.Guard`."""


def write_md_page(
    log: Path,
    trajectory: Path,
    frame_every: int,
    page: Path,
    title: str,
    extrapolation: Path | None = None,
) -> None:
    """Write a page with the quantities of the log and the trajectory in 3D, atomically.

    Steps outside the training distribution are marked on the curves.

    Args:
        log: Written by :class:`lkm_calc.md.Simulation`.
        trajectory: Written by it.
        frame_every: Number of steps between its frames.
        page: Output file.
        title: Title of the page.
        extrapolation: Written by it, if the calculator has a guard; None or a file that does not
            exist for a run without.

    Raises:
        PageError: plotly or chemiscope is not installed.
        ValueError: ``extrapolation`` is damaged.
    """
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    frames, stride = _frames(trajectory, int(columns["step"][-1]) // frame_every + 1)
    steps = stride * frame_every * np.arange(len(frames))
    thinned = slice(None, None, -(-len(rows) // MAX_ROWS))
    columns = {name: values[thinned] for name, values in columns.items()}
    nearest = np.abs(columns["step"][:, None] - steps).argmin(1)
    per_step = columns["time_ps"][-1] / columns["step"][-1] if columns["step"][-1] else 0.0
    for name in ("total_eV", "potential_eV"):
        columns[name] -= columns["potential_eV"].min()
    lead = [
        "Click a curve to show the structure at that time. Drag to zoom into a plot; double-click "
        "to reset."
    ]
    if stride > 1:
        count = len(frames)
        lead.append(f"The page contains {count} frames of {trajectory.name}, one in {stride}.")
    outside = None
    if extrapolation is not None and extrapolation.exists():
        outside = _Outside(ExtrapolationLog(extrapolation).rows(), steps, frames[0])
        lead.append(outside.summary())
    write_page(
        page,
        Page(
            title=title,
            lead=lead,
            beside=_plots(columns, nearest, outside),
            scene=Scene(
                title=title,
                frames=[
                    _scene_frame(atoms, step * per_step)
                    for atoms, step in zip(frames, steps, strict=True)
                ],
                units={"force": "eV/Å"},
                trajectory=True,
            ),
        ),
    )


def _frames(trajectory: Path, count: int) -> tuple[list[ase.Atoms], int]:
    """Return frames of the trajectory, and the interval between them."""
    size = len(read_structures(trajectory, 0)[0])
    limit = max(1, min(MAX_FRAMES, MAX_ATOMS // size))
    stride = -(-count // limit)
    return read_structures(trajectory, f"::{stride}"), stride


def _scene_frame(atoms: ase.Atoms, time: float) -> SceneFrame:
    forces = atoms.get_forces(apply_constraint=False)
    norms = np.linalg.norm(forces, axis=1)
    worst = int(norms.argmax())
    energy, temperature = atoms.get_potential_energy(), atoms.get_temperature()
    return SceneFrame(
        atoms=atoms,
        caption=f"{time:.4g} ps: potential energy {energy:.4f} eV, temperature "
        f"{temperature:.0f} K, largest force {norms[worst]:.3g} eV/Å on {atoms.symbols[worst]} "
        f"{worst}.",
        values={"force [eV/Å]": norms},
        vectors={"force": forces},
        focus=worst,
    )


class _Outside:
    """The steps outside the training distribution.

    Args:
        rows: The log of them.
        frames: (frames) steps of the frames on the page.
        atoms: One of the frames.
    """

    def __init__(
        self, rows: Sequence[ExtrapolationRow], frames: NDArray[np.int64], atoms: ase.Atoms
    ) -> None:
        self.rows, self.atoms = rows, atoms
        self.steps = [list(found) for _, found in groupby(rows, key=lambda row: row.step)]
        self.stride = max(1, -(-len(self.steps) // MAX_ROWS))
        self.marked = self.steps[:: self.stride]
        self.nearest = [int(np.abs(frames - found[0].step).argmin()) for found in self.marked]

    def summary(self) -> str:
        """Return how many there are."""
        count = len(self.steps)
        if count == 0:
            return "Extrapolation guard: no step is outside the training distribution."
        text = (
            f"Extrapolation guard: {count} {'step is' if count == 1 else 'steps are'} outside the "
            f"training distribution, the first at {self.rows[0].time_ps:.4g} ps"
        )
        which = "" if self.stride == 1 else f", of which one in {self.stride} is marked"
        return f"{text}{which}. Red points mark them; hover over one to see the measure."

    def trace(self, time: NDArray[np.float64], values: NDArray[np.float64]) -> dict[str, Any]:
        """Return marks on a curve."""
        times = [found[0].time_ps for found in self.marked]
        return {
            "type": "scattergl",
            "mode": "markers",
            "x": [float(f"{t:.6g}") for t in times],
            "y": [float(f"{value:.9g}") for value in np.interp(times, time, values)],
            "customdata": [
                [frame, found[0].atoms[0]]
                for frame, found in zip(self.nearest, self.marked, strict=True)
            ],
            "text": [self._text(found) for found in self.marked],
            "marker": {"color": "#d62728", "size": 6},
            "hovertemplate": "%{text}<extra></extra>",
        }

    def _text(self, rows: Sequence[ExtrapolationRow]) -> str:
        lines = [f"step {rows[0].step} ({rows[0].time_ps:.6g} ps), outside:"]
        for row in rows:
            names = " and ".join(f"{self.atoms.symbols[i]} {i}" for i in row.atoms)
            text = MEASURES[row.measure]
            lines.append(text.format(value=row.value, threshold=row.threshold, atoms=names))
        return "<br>".join(lines)


def _plots(
    columns: dict[str, NDArray[np.float64]],
    nearest: NDArray[np.int64],
    outside: _Outside | None,
) -> list[Plot]:
    axis = {"gridcolor": "#e5e5e5", "zeroline": False, "linecolor": "#bbb", "ticks": "outside"}
    plots = []
    for name, (title, unit) in QUANTITIES.items():
        values = columns.get(name, np.array([np.nan]))
        if not np.isfinite(values).all() or (name == "volume_A3" and np.ptp(values) == 0):
            continue
        trace: dict[str, Any] = {
            "type": "scattergl",
            "mode": "lines",
            "x": [float(f"{time:.6g}") for time in columns["time_ps"]],
            "y": [float(f"{value:.9g}") for value in values],
            "customdata": [[int(k), -1] for k in nearest],
            "line": {"width": 1},
            "hovertemplate": f"%{{x}} ps: %{{y:.6g}} {unit}<extra></extra>",
        }
        layout = {
            "xaxis": axis | {"title": {"text": "time, ps"}},
            "yaxis": axis | {"title": {"text": unit}},
            "plot_bgcolor": "#fff",
            "showlegend": False,
        }
        traces = [trace]
        if outside is not None and outside.marked:
            traces.append(outside.trace(columns["time_ps"], values))
        plots.append(Plot(title=title, figure={"data": traces, "layout": layout}))
    return plots

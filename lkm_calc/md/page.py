"""Interactive page of a simulation."""

import csv
from pathlib import Path
from typing import Any

import ase
import numpy as np
from numpy.typing import NDArray

from ..files import read_structures
from ..page import Page, Plot, Scene, SceneFrame, write_page

MAX_FRAMES = 500
"""Maximum number of frames of the trajectory on a page."""
MAX_ATOMS = 20_000
"""Maximum number of their atoms."""
MAX_ROWS = 5000
"""Maximum number of points of a curve."""
QUANTITIES = {
    "temperature_K": ("Temperature", "K"),
    "potential_eV": ("Potential energy, relative to its minimum", "eV"),
    "total_eV": ("Total energy, relative to the same", "eV"),
    "drift_meV_per_atom": ("Drift of the conserved quantity", "meV/atom"),
    "pressure_bar": ("Pressure", "bar"),
    "volume_A3": ("Volume", "Å³"),
}
"""Columns of the log with titles and units."""


def write_md_page(log: Path, trajectory: Path, frame_every: int, page: Path, title: str) -> None:
    """Write a page with the quantities of the log and the trajectory in 3D, atomically.

    Args:
        log: Written by :class:`lkm_calc.md.Simulation`.
        trajectory: Written by it.
        frame_every: Number of steps between its frames.
        page: Output file.
        title: Title of the page.

    Raises:
        PageError: plotly or chemiscope is not installed.
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
    write_page(
        page,
        Page(
            title=title,
            lead=lead,
            beside=_plots(columns, nearest),
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


def _plots(columns: dict[str, NDArray[np.float64]], nearest: NDArray[np.int64]) -> list[Plot]:
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
        plots.append(Plot(title=title, figure={"data": [trace], "layout": layout}))
    return plots

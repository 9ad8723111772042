"""Interactive page of an active learning run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lkm_calc.page import Page, Plot, Scene, SceneFrame, Table, write_page

from ..formats import read_hdf5
from .rounds import Round

MAX_ATOMS = 20_000
"""Maximum number of atoms of the structures on a page."""
HEADER = (
    "round",
    "labelled frames",
    "force MAE, meV/Å",
    "simulated, ps",
    "structures outside",
    "labelled",
    "force MAE of these, meV/Å",
    "ended early",
)


def write_learning_page(rounds: Sequence[Round], directory: Path, title: str) -> Path:
    """Write ``learn.html`` with errors and structures of each round, and return its path.

    Raises:
        PageError: plotly or chemiscope is not installed.
    """
    path = directory / "learn.html"
    last = rounds[-1]
    lead = [
        f"{len(rounds)} rounds, {last.frames} labelled frames. "
        + (
            f"The last simulation of {last.picoseconds:g} ps was within the training distribution."
            if last.finished
            else f"Not finished: {last.outside} structures of the last simulation are outside the "
            "training distribution."
        )
    ]
    write_page(
        path,
        Page(
            title=title,
            lead=lead,
            beside=[
                _curve(rounds, "outside", "Structures outside the training distribution"),
                _curve(rounds, "force_mae", "Force MAE on validation frames, meV/Å"),
            ],
            scene=_scene(rounds, directory, title),
            below=[Table(title="Rounds", header=HEADER, rows=[_row(one) for one in rounds])],
        ),
    )
    return path


def _row(one: Round) -> list[str]:
    return [
        str(one.number),
        str(one.frames),
        f"{one.force_mae:.1f}",
        f"{one.picoseconds:.4g}",
        str(one.outside),
        str(one.labelled),
        "" if one.new_force_mae is None else f"{one.new_force_mae:.1f}",
        one.failure,
    ]


def _curve(rounds: Sequence[Round], name: str, title: str) -> Plot:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [one.frames for one in rounds],
        "y": [getattr(one, name) for one in rounds],
        "text": [f"round {one.number}" for one in rounds],
        "customdata": [[-1, -1] for _ in rounds],
        "hovertemplate": "%{text}: %{y:.4g} with %{x} labelled frames<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "labelled frames"}},
        "yaxis": {"rangemode": "tozero"},
        "margin": {"l": 60, "r": 10, "t": 10, "b": 45},
        "height": 260,
    }
    return Plot(title=title, figure={"data": [trace], "layout": layout})


def _scene(rounds: Sequence[Round], directory: Path, title: str) -> Scene:
    """Return the labelled frames with their forces, evenly thinned."""
    frames = read_hdf5(directory / "frames.h5", check_units=False)
    count = min(len(frames), max(1, int(MAX_ATOMS / frames.sizes.mean())))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    starts = np.array([one.frames for one in rounds])
    pictures = []
    for f in chosen.tolist():
        rows = slice(frames.starts[f], frames.starts[f + 1])
        assert frames.forces is not None
        forces = frames.forces[rows]
        norms = np.linalg.norm(forces, axis=1)
        number = int((starts <= f).sum())
        origin = f"labelled after round {number}" if number else "labelled first"
        pictures.append(
            SceneFrame(
                atoms=frames.atoms(f),
                caption=f"Frame {f}, {origin}: energy {frames.energies[f]:.6g} eV, largest force "
                f"{norms.max():.3g} eV/Å.",
                values={"force [eV/Å]": norms},
                vectors={"force": forces},
                focus=int(norms.argmax()),
            )
        )
    return Scene(title=title, frames=pictures, units={"force": "eV/Å"}, trajectory=False)

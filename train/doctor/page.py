"""Interactive page of a data report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lkm_calc.nn import MAX_NUMBER
from lkm_calc.page import Block, Page, Plot, Scene, SceneFrame, Table, write_page

from ..data import Frames
from .checks import Floats, Ints
from .figures import Figures, Report
from .report import MAX_COMPOSITIONS, figure_rows

MAX_PER_FINDING = 20
"""Maximum number of frames listed for each finding."""
MAX_FRAMES = 500
"""Maximum number of frames with their structures on a page, besides those listed."""
MAX_ATOMS = 20_000
"""Maximum number of their atoms."""
MAX_POINTS = 20_000
"""Maximum number of points in a plot."""
FORCE = "force"
"""Name of the arrows."""


def write_report_page(frames: Frames, report: Report, source: str, path: Path) -> None:
    """Write a page with the findings, the frames concerned in 3D, and plots, atomically.

    Args:
        frames: The examined frames.
        report: Result of :func:`diagnose` for them.
        source: Name of the file.
        path: Output file.

    Raises:
        PageError: plotly or chemiscope is not installed.
    """
    write_page(path, report_page(frames, report, source))


def report_page(frames: Frames, report: Report, source: str) -> Page:
    """Return the page of a data report."""
    shown = _shown(frames, report)
    places = {frame: k for k, frame in enumerate(shown)}
    faults = sorted({f.name for f in report.findings if f.severity == "fault"})
    verdict = f"faults: {', '.join(faults)}" if faults else "no faults"
    beside: list[Block] = [_findings(report, places)]
    below: list[Block] = []
    if report.figures is not None:
        beside += _plots(report, report.figures, frames, places)
        rows = figure_rows(report.figures)
        below = [
            *_pairs(report.figures),
            _compositions(report.figures),
            Table(title="Properties", header=("", ""), rows=rows),
        ]
    scene = Scene(
        title=source,
        frames=[_scene_frame(frames, report, frame) for frame in shown],
        units={} if frames.forces is None else {FORCE: "eV/Å"},
    )
    lead = [
        f"{len(frames)} frames, {verdict}.",
        "Click a row or a point to show the structure. Drag to zoom into a plot; double-click to "
        "reset.",
    ]
    if len(shown) < len(frames):
        lead.append(
            f"The page contains {len(shown)} structures: those of the frames in the list of "
            "findings, and others evenly spaced in the file."
        )
    return Page(
        title=Path(source).name,
        lead=lead,
        beside=beside,
        scene=scene if shown else None,
        below=below,
    )


def _shown(frames: Frames, report: Report) -> list[int]:
    """Return the frames with structures on the page: those listed, then others evenly spaced."""
    strange = ~np.isfinite(frames.positions).all(1)
    strange |= (frames.numbers < 1) | (frames.numbers > MAX_NUMBER)
    drawable = frames.sizes > 0
    drawable[frames.atom_frame[strange]] = False
    if frames.cells is not None:
        drawable &= np.isfinite(frames.cells).all((1, 2))
    listed = [f for finding in report.findings for f in finding.frames[:MAX_PER_FINDING]]
    first = [f for f in dict.fromkeys(listed) if drawable[f]]
    others = np.setdiff1d(np.flatnonzero(drawable), first)
    if not len(others):
        return first
    count = min(len(others), MAX_FRAMES, max(1, int(MAX_ATOMS / frames.sizes[others].mean())))
    chosen = others[np.linspace(0, len(others) - 1, count).round().astype(int)]
    return [*first, *chosen.tolist()]


def _scene_frame(frames: Frames, report: Report, frame: int) -> SceneFrame:
    rows = slice(frames.starts[frame], frames.starts[frame + 1])
    atoms = frames.atoms(frame)
    names = [finding.name for finding in report.findings if frame in finding.frames]
    text = f"Frame {frame}, {atoms.get_chemical_formula()}: energy {frames.energies[frame]:.6g} "
    text += frames.energy_unit
    if frames.forces is None:
        values, vectors, focus = {}, {}, 0
    else:
        norms = np.linalg.norm(frames.forces[rows], axis=1)
        values, vectors = {f"{FORCE} [eV/Å]": norms}, {FORCE: frames.forces[rows]}
        focus = 0
        if np.isfinite(norms).all():
            focus = int(norms.argmax())
            text += f", largest force {norms[focus]:.3g} eV/Å on {atoms.symbols[focus]} {focus}"
    if names:
        text += f". Findings: {', '.join(names)}"
    return SceneFrame(atoms=atoms, caption=f"{text}.", values=values, vectors=vectors, focus=focus)


def _findings(report: Report, places: Mapping[int, int]) -> Table:
    """Return the findings, each followed by the frames concerned."""
    rows: list[tuple[str, str, str]] = []
    structures: list[int] = []
    for finding in report.findings:
        rows.append((finding.severity, finding.name, finding.message))
        structures.append(places.get(finding.frames[0], -1) if finding.frames else -1)
        for frame in finding.frames[:MAX_PER_FINDING]:
            rows.append(("", "", f"frame {frame}"))
            structures.append(places.get(frame, -1))
        if len(finding.frames) > MAX_PER_FINDING:
            rows.append(("", "", f"and {len(finding.frames) - MAX_PER_FINDING} more"))
            structures.append(-1)
    note = "" if rows else "No faults, and nothing to note."
    return Table(
        title="Findings",
        header=("", "name", "what was found"),
        rows=rows,
        structures=structures,
        note=note,
    )


def _plots(
    report: Report, figures: Figures, frames: Frames, places: Mapping[int, int]
) -> list[Plot]:
    """Return energies, largest forces and shortest distances by frame."""
    concerned = {frame for finding in report.findings for frame in finding.frames}
    with_forces = figures.usable[frames.has_forces[figures.usable]]
    quantities = [
        ("Energy minus reference energies", "eV", figures.usable, figures.residuals, "linear"),
        ("Largest force", "eV/Å", with_forces, figures.largest_force, "log"),
        (
            "Shortest distance",
            "distance / sum of covalent radii",
            figures.usable,
            figures.contacts,
            "linear",
        ),
    ]
    plots = []
    for title, unit, which, values, scale in quantities:
        known = np.isfinite(values)
        if not known.any():
            continue
        traces = []
        for name, colour, wanted in (
            ("others", "#1f77b4", False),
            ("findings", "#d62728", True),
        ):
            chosen = known & (np.isin(which, list(concerned)) == wanted)
            kept = np.flatnonzero(chosen)
            kept = kept[:: 1 if wanted else -(-len(kept) // MAX_POINTS) or 1]
            if len(kept):
                traces.append(_trace(name, colour, which[kept], values[kept], unit, places))
        plots.append(Plot(title=title, figure=_figure(traces, "frame", unit, scale)))
    return plots


def _trace(
    name: str, colour: str, which: Ints, values: Floats, unit: str, places: Mapping[int, int]
) -> dict[str, Any]:
    return {
        "type": "scattergl",
        "mode": "markers",
        "name": name,
        "x": which.tolist(),
        "y": [float(f"{value:.5g}") for value in values],
        "customdata": [[places.get(frame, -1), -1] for frame in which.tolist()],
        "marker": {"color": colour, "size": 6, "opacity": 0.6},
        "hovertemplate": f"frame %{{x}}: %{{y}} {unit}<extra></extra>",
    }


def _pairs(figures: Figures) -> list[Plot]:
    """Return energy differences of similar frames against the work of the forces, if tested."""
    pairs = figures.pairs
    if pairs is None:
        return []
    stride = -(-len(pairs.work) // MAX_POINTS)
    ends = [float(pairs.work.min()), float(pairs.work.max())]
    points = {
        "type": "scattergl",
        "mode": "markers",
        "name": "pairs of frames",
        "x": pairs.work[::stride].round(5).tolist(),
        "y": pairs.differences[::stride].round(5).tolist(),
        "marker": {"size": 5, "opacity": 0.5},
    }
    lines = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": ends,
            "y": [slope * x for x in ends],
        }
        for name, slope in (
            ("slope 1 (ideal)", 1.0),
            (f"slope {pairs.slope:.2f}, correlation {pairs.correlation:.2f}", pairs.slope),
        )
    ]
    figure = _figure([points, *lines], "−F·ΔR, eV", "ΔE, eV", "linear")
    return [Plot(title="Energy change of similar frames", figure=figure)]


def _figure(traces: list[dict[str, Any]], x: str, y: str, scale: str) -> dict[str, Any]:
    axis = {"gridcolor": "#e5e5e5", "zeroline": False, "linecolor": "#bbb", "ticks": "outside"}
    return {
        "data": traces,
        "layout": {
            "xaxis": axis | {"title": {"text": x}},
            "yaxis": axis | {"title": {"text": y}, "type": scale, "exponentformat": "power"},
            "plot_bgcolor": "#fff",
            "showlegend": len(traces) > 1,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1}
            | {"xanchor": "right"},
        },
    }


def _compositions(figures: Figures) -> Table:
    rows = [
        (c.formula, str(c.n_frames), f"{c.mean_energy:.4f}", f"{c.spread:.4f}")
        for c in figures.compositions[:MAX_COMPOSITIONS]
    ]
    more = len(figures.compositions) - MAX_COMPOSITIONS
    return Table(
        title="Compositions",
        header=("composition", "frames", "mean energy, eV", "spread, eV"),
        rows=rows,
        note=f"And {more} more." if more > 0 else "",
    )

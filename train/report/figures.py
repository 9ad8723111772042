"""Interactive figures of a run, for plotly."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.data.colors import jmol_colors
from numpy.typing import NDArray

from lkm_calc.page import Plot

Rows = Sequence[Mapping[str, Any]]
Links = Sequence[Sequence[Any]]
"""Of each point: structure, atom (or -1) and further values for the text shown on hover."""

ERRORS = {
    "validation_force_mae": "forces, meV/Å",
    "validation_energy_mae": "energy, meV",
    "validation_stress_mae": "stress, meV/Å³",
}
LOSSES = {
    "train_energy": "energy",
    "train_forces": "forces",
    "train_stress": "stress",
    "train_lkm": "L<sub>KD</sub>",
}
RATE = {"learning_rate": "Learning rate"}
LOG = {"type": "log", "exponentformat": "power"}
"""Logarithmic axis."""
BUTTONS = {
    "type": "buttons",
    "direction": "right",
    "x": 0,
    "xanchor": "left",
    "y": 1.02,
    "yanchor": "bottom",
    "pad": {"b": 2},
    "font": {"size": 12},
}
"""Buttons above the left end of a plot."""
LAYERS = {"layers_norm": "size of embeddings", "layers_lkm": "L<sub>KD</sub>"}


def learning_curves(rows: Rows) -> list[Plot]:
    """Return plots of errors, losses, statistics of the layers and learning rate by epoch.

    Args:
        rows: Rows of metrics.jsonl.
    """
    plots = [
        _curves("Validation MAE", rows, ERRORS, LOG),
        _curves("Training loss, unweighted parts", rows, LOSSES, LOG),
        _curves("Layers, validation", rows, LAYERS, LOG),
        _curves("Learning rate", rows, RATE, {}),
    ]
    return [plot for plot in plots if plot.figure["data"]]


def curves_of_runs(runs: Mapping[str, Rows]) -> list[Plot]:
    """Return the same for several runs, with one plot for each quantity.

    Args:
        runs: Rows of metrics.jsonl, by name of the run.
    """
    quantities = (
        *((f"Validation MAE: {label}", name) for name, label in ERRORS.items()),
        *((f"Training loss: {_plain(label)}", name) for name, label in LOSSES.items()),
        *((f"Layers: {_plain(label)}", name) for name, label in LAYERS.items()),
        *((label, name) for name, label in RATE.items()),
    )
    plots = []
    for title, name in quantities:
        traces = [_curve(rows, name, run) for run, rows in runs.items()]
        if not any(trace["x"] for trace in traces):
            continue
        for colour, trace in zip(itertools.cycle(_COLOURS), traces, strict=False):
            trace["line"] = {"color": colour}
        minutes = [
            [round(row["seconds"] / 60, 2) for row in rows if row.get(name)]
            for rows in runs.values()
        ]
        figure = _figure(traces, "epoch", "", yaxis=LOG)
        buttons = [
            {"label": label, "method": "update", "args": [{"x": x}, {"xaxis.title.text": label}]}
            for label, x in (("epoch", [t["x"] for t in traces]), ("minutes", minutes))
        ]
        figure["layout"]["legend"] = {}  # at the right
        figure["layout"]["updatemenus"] = [BUTTONS | {"buttons": buttons}]
        plots.append(Plot(title=title, figure=figure))
    return plots


def _plain(label: str) -> str:
    """Return a label without HTML."""
    return label.replace("<sub>", "_").replace("</sub>", "")


def _curves(title: str, rows: Rows, names: Mapping[str, str], yaxis: Mapping[str, str]) -> Plot:
    """Plot the columns that exist and are not always zero."""
    traces = [_curve(rows, name, label) for name, label in names.items()]
    shown = [trace for trace in traces if trace["x"]]
    return Plot(title=title, figure=_figure(shown, "epoch", "", yaxis=yaxis))


def _curve(rows: Rows, name: str, label: str) -> dict[str, Any]:
    points = [(row["epoch"], float(f"{row[name]:.5g}")) for row in rows if row.get(name)]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(points) < 60 else "lines",
        "name": label,
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "marker": {"size": 4},
        "hovertemplate": "%{x}: %{y:.4g}",
    }


_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)


def energy_parity(
    title: str,
    unit: str,
    reference: NDArray[np.floating],
    error: NDArray[np.floating],
    links: Links,
) -> Plot:
    """Plot predicted against reference energies of frames.

    Args:
        title: Title with the mean error.
        unit: Unit of the energies.
        reference: (frames) without reference energies.
        error: (frames) predicted minus reference.
        links: Structure, -1 and number of each frame.
    """
    trace = _points("frames", "#1f77b4", reference, error, links, 6, 6)
    trace["hovertemplate"] = (
        f"frame %{{customdata[2]}}<br>reference %{{x:.4f}} {unit}<br>"
        f"error %{{customdata[3]:.4f}} {unit}<extra></extra>"
    )
    axes = f"reference, {unit}, without reference energies", f"predicted, {unit}", f"error, {unit}"
    return Plot(title=title, figure=_parity([trace], *axes), parity=True)


def force_parity(
    title: str,
    numbers: NDArray[np.integer],
    reference: NDArray[np.floating],
    error: NDArray[np.floating],
    links: Links,
) -> Plot:
    """Plot predicted against reference force components, by element.

    Args:
        title: Title with the mean error.
        numbers: (atoms) atomic numbers.
        reference: (atoms, 3) in eV/Å.
        error: (atoms, 3) predicted minus reference in eV/Å.
        links: Structure, atom and number of the frame of each atom.
    """
    traces = []
    for number in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == number).tolist()
        mae = 1000 * float(np.abs(error[rows]).mean())
        trace = _points(
            f"{chemical_symbols[number]}: {mae:.1f} meV/Å",
            _colour(number),
            reference[rows].ravel(),
            error[rows].ravel(),
            [links[row] for row in rows for _ in range(3)],
            4,
            3,
        )
        trace["hovertemplate"] = (
            f"frame %{{customdata[2]}}, atom %{{customdata[1]}} ({chemical_symbols[number]})<br>"
            "reference %{x:.3f} eV/Å<br>error %{customdata[3]:.4f} eV/Å<extra></extra>"
        )
        traces.append(trace)
    axes = "reference component, eV/Å", "predicted, eV/Å", "error, eV/Å"
    return Plot(title=title, figure=_parity(traces, *axes), parity=True)


def expected_errors(
    numbers: NDArray[np.integer],
    expected: NDArray[np.floating],
    error: NDArray[np.floating],
    links: Links,
) -> Plot:
    """Plot the errors of the force on each atom against the expected errors, by element.

    Args:
        numbers: (atoms) atomic numbers.
        expected: (atoms) expected error in eV/Å.
        error: (atoms) magnitude of the error in eV/Å.
        links: Structure, atom and number of the frame of each atom.
    """
    traces: list[dict[str, Any]] = []
    for number in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == number).tolist()
        symbol = chemical_symbols[number]
        below = float((error[rows] <= expected[rows]).mean())
        traces.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "name": f"{symbol}: {below:.0%} below",
                "x": _figures(1000 * expected[rows]),
                "y": _figures(1000 * error[rows]),
                "customdata": [links[row] for row in rows],
                "marker": {"color": _colour(number), "size": 4, "opacity": 0.5},
                "hovertemplate": f"frame %{{customdata[2]}}, atom %{{customdata[1]}} ({symbol})<br>"
                "expected %{x} meV/Å<br>error %{y} meV/Å<extra></extra>",
            }
        )
    ends = [1000 * float(expected.min()), 1000 * float(expected.max())]
    traces.append(_line(ends, ends))
    return Plot(
        title="Force errors against expected errors",
        figure=_figure(traces, "expected error, meV/Å", "error, meV/Å", LOG, LOG),
        note="Every point is an atom. The expected error is a median: about half of the atoms "
        "should be below the line.",
    )


def _points(
    name: str,
    colour: str,
    reference: NDArray[np.floating],
    error: NDArray[np.floating],
    links: Links,
    size: int,
    decimals: int,
) -> dict[str, Any]:
    """Return the points of a parity plot; the page adds the ordinates."""
    errors = _figures(error)
    return {
        "type": "scattergl",
        "mode": "markers",
        "name": name,
        "x": np.round(reference, decimals).tolist(),
        "customdata": [[*link, value] for link, value in zip(links, errors, strict=True)],
        "marker": {"color": colour, "size": size, "opacity": 0.6},
    }


def _parity(traces: list[dict[str, Any]], x: str, predicted: str, error: str) -> dict[str, Any]:
    """Return the figure of a parity plot, with the line of equality."""
    ends = [min(min(t["x"]) for t in traces), max(max(t["x"]) for t in traces)]
    line = _line(ends)
    found = _figure([line, *traces], x, predicted)
    found["layout"]["meta"] = {"predicted": predicted, "error": error}
    return found


def _line(x: list[float], y: list[float] | None = None) -> dict[str, Any]:
    line = {"color": "#999", "width": 1}
    found = {"type": "scatter", "mode": "lines", "x": x, "line": line}
    return found | {"showlegend": False, "hoverinfo": "skip"} | ({"y": y} if y else {})


def _figure(
    traces: list[dict[str, Any]],
    x: str,
    y: str,
    xaxis: Mapping[str, Any] | None = None,
    yaxis: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    grid = {"gridcolor": "#e5e5e5", "zeroline": False, "linecolor": "#bbb", "ticks": "outside"}
    return {
        "data": traces,
        "layout": {
            "xaxis": grid | {"title": {"text": x}} | dict(xaxis or {}),
            "yaxis": grid | {"title": {"text": y}} | dict(yaxis or {}),
            "plot_bgcolor": "#fff",
            "showlegend": len([t for t in traces if t.get("showlegend", True)]) > 1,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1}
            | {"xanchor": "right", "itemsizing": "constant"},
        },
    }


def _colour(number: int) -> str:
    """Return the colour of an element, darkened, because it is drawn on white."""
    return "#" + "".join(f"{round(0.8 * 255 * value):02x}" for value in jmol_colors[number])


def _figures(values: NDArray[np.floating]) -> list[float]:
    """Return values with three significant digits."""
    return [float(f"{value:.3g}") for value in values]

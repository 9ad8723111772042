"""The page of lkm-calc models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase

from ..files import read_structures
from ..page import Code, Page, Plot, Scene, SceneFrame, Table

Facts = Mapping[str, Any]
"""Facts about a model, see :func:`lkm_calc.commands.info.model_facts`."""

ERRORS = {
    "energy_mae": "energy MAE, meV",
    "energy_rmse": "RMSE",
    "force_mae": "force MAE, meV/Å",
    "force_rmse": "RMSE",
}
"""Columns of the table of errors."""
USE = """\
from lkm_calc import LKMCalculator

atoms.calc = LKMCalculator("rmd17-ethanol")
"""


def models_page(models: Sequence[tuple[str, Facts]]) -> Page:
    """Return the page about bundled models, given their names and facts."""
    structures = [read_structures(Path(facts["structure"]), 0)[0] for _, facts in models]
    marked = any(errors_and_mark(facts)[1] for _, facts in models)
    return Page(
        title="Bundled models of lkm-calc",
        lead=["Click a model in a table or the plot to show its molecule; drag to rotate it."],
        beside=[
            Table(
                title="Errors on test frames",
                header=("model", "elements", *ERRORS.values()),
                rows=[_error_row(name, facts) for name, facts in models],
                structures=range(len(models)),
                note="* on the validation frames that selected the best epoch." if marked else "",
            ),
            _force_errors(models),
        ],
        scene=Scene(
            title="molecules",
            frames=[
                SceneFrame(atoms=atoms, caption=_caption(name, facts, atoms))
                for (name, facts), atoms in zip(models, structures, strict=True)
            ],
        ),
        below=[
            Table(
                title="Models and training data",
                header=(
                    *("model", "architecture", "parameters", "MB", "cutoff, Å", "created"),
                    *("training + validation frames", "training data"),
                ),
                rows=[_training_row(name, facts) for name, facts in models],
                structures=range(len(models)),
                note="lkm-calc info MODEL prints hyperparameters and more.",
            ),
            Code(title="Use", text=USE),
        ],
    )


def errors_and_mark(facts: Facts) -> tuple[Mapping[str, float], str]:
    """Return the test errors of a model, or its validation errors and a mark."""
    training = facts["provenance"]
    if "test_errors" in training:
        return training["test_errors"], ""
    return training["validation_errors"], "*"


def _error_row(name: str, facts: Facts) -> list[str]:
    errors, mark = errors_and_mark(facts)
    values = [f"{errors[key]:.2f}{mark}" if key in errors else "–" for key in ERRORS]
    return [name, " ".join(facts["elements"]), *values]


def _training_row(name: str, facts: Facts) -> list[str]:
    training = facts["provenance"]
    data = training["config"]["data"]
    return [
        name,
        facts["architecture"],
        f"{facts['parameters']:,}",
        f"{facts['bytes'] / 1e6:.1f}",
        f"{facts['cutoff']:g}",
        training["date"],
        f"{data['n_train']} + {data['n_validation']}",
        _description(facts),
    ]


def _caption(name: str, facts: Facts, atoms: ase.Atoms) -> str:
    return f"{name}: {atoms.get_chemical_formula()}. {_description(facts)}"


def _description(facts: Facts) -> str:
    """Return the training data of a model.

    These are the paragraph of its card that is between title and first table, and the pretraining.
    """
    card = Path(facts["file"]).with_suffix(".md").read_text(encoding="utf-8")
    paragraph = card.split("\n\n")[1]
    parts = [] if paragraph.startswith("|") else [" ".join(paragraph.split())]
    first = facts["provenance"]["config"].get("pretraining", {})
    if first.get("calculator"):
        parts.append(
            f"Pretrained on {first['frames']} frames of MD at {first['temperature']:g} K with "
            f"{first['calculator']}."
        )
    return " ".join(parts)


def _force_errors(models: Sequence[tuple[str, Facts]]) -> Plot:
    """Plot the force errors of the models."""
    axis = {"gridcolor": "#e5e5e5", "linecolor": "#bbb"}
    log = {"type": "log", "dtick": "D2", "title": {"text": "force error, meV/Å"}}
    traces: list[dict[str, Any]] = [
        {"type": "bar", "name": "MAE", "orientation": "h", "marker": {"color": "#1f77b4"}},
        {
            **{"type": "scatter", "name": "RMSE", "mode": "markers"},
            "marker": {"color": "#d62728", "symbol": "diamond", "size": 9},
        },
    ]
    for trace, key in zip(traces, ("force_mae", "force_rmse"), strict=True):
        trace |= {
            "x": [round(errors_and_mark(facts)[0][key], 2) for _, facts in models],
            "y": [name for name, _ in models],
            "customdata": [[k, -1] for k in range(len(models))],
            "hovertemplate": f"%{{y}}: {trace['name']} %{{x:.2f}} meV/Å<extra></extra>",
        }
    layout = {
        "xaxis": axis | log,
        "yaxis": {"linecolor": "#bbb", "autorange": "reversed"},
        "plot_bgcolor": "#fff",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    }
    return Plot(title="Force errors, logarithmic scale", figure={"data": traces, "layout": layout})

"""The page that compares runs: learning curves, errors, and options that differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lkm_calc.page import Page, Table, write_page

from ..config import ConfigError, to_table
from .card import ERRORS
from .figures import curves_of_runs
from .runs import Run

SHOWN = ("energy_mae", "force_mae", "stress_mae")
"""Errors in the table."""


def write_comparison(runs: Sequence[Run], path: Path) -> None:
    """Write the page that compares runs, atomically.

    Raises:
        ConfigError: There are fewer than two runs.
        PageError: plotly or chemiscope is not installed.
    """
    write_page(path, comparison(runs))


def comparison(runs: Sequence[Run]) -> Page:
    """Return the page that compares runs."""
    if len({run.directory.resolve() for run in runs}) < 2:
        raise ConfigError(
            f"compare needs two runs or more; got {', '.join(str(run.directory) for run in runs)}. "
            "Specify their directories."
        )
    names = _names(runs)
    differing = different_options([_options(run) for run in runs])
    options = Table(
        title="Options that differ",
        header=("option", *names),
        rows=[(name, *map(_shown, values)) for name, values in differing.items()],
        note="" if differing else "None but run.directory.",
    )
    return Page(
        title=f"Comparison of {', '.join(names)}",
        lead=[
            "Click a run in a legend to hide it. Drag to zoom into a plot; double-click to reset."
        ],
        below=[
            _errors(runs, names),
            options,
            *curves_of_runs({name: run.rows for name, run in zip(names, runs, strict=True)}),
        ],
    )


def different_options(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of the options that differ between configurations, by name.

    None stands for an option that a configuration does not have, such as a hyperparameter of
    another architecture.
    """
    flat = [_flat(table) for table in tables]
    names = dict.fromkeys(name for options in flat for name in options)
    found = {name: [options.get(name) for options in flat] for name in names}
    return {
        name: values
        for name, values in found.items()
        if name != "run.directory" and any(value != values[0] for value in values)
    }


def _options(run: Run) -> dict[str, Any]:
    """Return the options of a run, with all hyperparameters of its model.

    Data files are named by their contents, because the same file may be in different places.
    """
    table = to_table(run.config)
    table["model"]["hypers"] = run.header["hypers"]
    for name, file in run.header["provenance"].get("files", {}).items():
        table["data"][name] = f"{file['name']}, SHA-256 {file['sha256'][:16]}…"
    return table


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one table with names such as "model.hypers.hidden"."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _shown(value: Any) -> str:
    return "–" if value is None or value == "" else str(value)


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the names of the folders, or their paths where names are repeated."""
    names = [run.name for run in runs]
    repeated = len(set(names)) < len(names)
    return [str(run.directory) for run in runs] if repeated else names


def _errors(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """Return the table of errors, times and sizes."""
    trainings = [run.header["provenance"] for run in runs]
    sets = [s for s in ("validation", "test") if any(f"{s}_errors" in t for t in trainings)]
    columns = [
        (f"{name} {label}, {unit}", f"{name}_errors", key)
        for name in sets
        for key, label, unit in ERRORS
        if key in SHOWN and any(key in t.get(f"{name}_errors", {}) for t in trainings)
    ]
    rows = []
    for name, run, training in zip(names, runs, trainings, strict=True):
        errors = [training.get(group, {}).get(key) for _, group, key in columns]
        epoch = run.rows[-1]["epoch"] if run.rows else 0
        rows.append(
            [
                name,
                run.header["architecture"],
                *("–" if error is None else f"{error:.2f}" for error in errors),
                f"{epoch} of {run.config.optimiser.epochs}",
                f"{training['training_seconds'] / 60:.1f}",
                training["device"],
            ]
        )
    header = ["run", "architecture", *(title for title, _, _ in columns)]
    units = {training.get("energy_unit", "eV") for training in trainings} - {"eV"}
    note = f"Energies are in 10⁻³ {', '.join(sorted(units))} instead of meV." if units else ""
    return Table(
        title="Errors",
        header=[*header, "epochs", "training, min", "device"],
        rows=rows,
        note=note,
    )

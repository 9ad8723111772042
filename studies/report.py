"""Make the report page of the documentation: its tables and pictures from the kept figures."""

import re
from collections.abc import Sequence
from pathlib import Path

from train.report import write_text

from . import cost, generality, layers_report
from .arms import HERE, read_study, study_files
from .effects import Mean, Setting, effect, error_mean, mean, settings
from .pictures import plot_effects, plot_gamma
from .tables import table

METRICS = {"force_mae": ("forces, meV/Å", 1), "energy_mae": ("energy, meV", 2)}
"""Errors of the tables: heading and digits."""
NOTHING = "*Not run yet.*"
SECTIONS = {
    "generality": generality.report,
    "layers": layers_report.report,
    "cost": cost.report,
}
"""Studies of their own kind: each returns its Markdown and draws its pictures."""


def write_report(results: Path, docs: Path) -> None:
    """Fill the tables into page.md and write it as study.md, with its pictures beside it.

    Args:
        results: Folder of the figures.
        docs: Folder to write to.

    Raises:
        ValueError: The page asks for a table that nothing makes.
    """
    found = {path.stem: settings(read_study(path), results / "arms") for path in study_files()}
    text = (HERE / "page.md").read_text(encoding="utf-8")
    tables = {name: effects_table(one) for name, one in found.items()}
    muon = [one for one in found["optimiser"] if one.labels["optimiser"].startswith("Muon")]
    tables |= {
        "gamma": gamma_table(found["gamma"]),
        "pooled": pooled_table(found["baseline"]),
        "pooled-muon": pooled_table(muon),
    }
    for name, one in tables.items():
        text = text.replace(f"<!-- table {name} -->", one)
    for name, report in SECTIONS.items():
        marker, folder = f"<!-- section {name} -->", results / name
        if marker in text:
            there = any(folder.glob("*.json"))
            text = text.replace(marker, report(folder, docs) if there else NOTHING)
    left = re.findall(r"<!-- (?:table|section) .*?-->", text)
    if left:
        raise ValueError(f"page.md asks for {', '.join(left)}, which nothing makes.")
    plot_effects(found, docs / "study-effects.png")
    plot_gamma(found["gamma"], docs / "study-gamma.png")
    write_text(docs / "study.md", text)


def effects_table(found: Sequence[Setting]) -> str:
    """Return a table: for each setting and error the mean without LKM and the change by each γ."""
    varying = [
        axis for axis in found[0].labels if len({setting.labels.get(axis) for setting in found}) > 1
    ]
    gammas = list(dict.fromkeys(g for setting in found for g in setting.gammas if g != "0"))
    head = [*varying, "error", "γ = 0", *(f"γ = {gamma}" for gamma in gammas)]
    lines = []
    for setting in found:
        for metric, (heading, digits) in METRICS.items():
            plain = error_mean(setting, "0", metric)
            changes = [effect(setting, gamma, metric) for gamma in gammas]
            if plain is None or not any(changes):
                continue
            cells = [_percent(one) for one in changes]
            labels = [setting.labels.get(axis, "") for axis in varying]
            lines.append([*labels, heading, f"{plain.text(digits)} ({plain.n})", *cells])
    return table(head, lines) if lines else NOTHING


def gamma_table(found: Sequence[Setting]) -> str:
    """Return the change of force and energy errors by γ, a row, and kind of distance, a column."""
    gammas = list(dict.fromkeys(g for setting in found for g in setting.gammas if g != "0"))
    head = ["γ", *(setting.labels["distance"] for setting in found)]
    lines = []
    for gamma in gammas:
        cells = [
            " / ".join(filter(None, (_percent(effect(setting, gamma, m)) for m in METRICS)))
            for setting in found
        ]
        lines.append([gamma, *cells])
    return table(head, lines)


def pooled_table(found: Sequence[Setting]) -> str:
    """Return the mean change over all settings of each architecture, and of all together.

    The standard error is that over settings, so it holds how much LKM differs between them.
    """
    models = [*dict.fromkeys(setting.labels["model"] for setting in found)]
    head = ["model", "γ", "settings", *(heading.split(",")[0] for heading, _ in METRICS.values())]
    lines = []
    for gamma in dict.fromkeys(g for setting in found for g in setting.gammas if g != "0"):
        for model in [*models, "all"]:
            some = [s for s in found if model in ("all", s.labels["model"])]
            changes = [
                [one.value for s in some if (one := effect(s, gamma, metric))] for metric in METRICS
            ]
            if changes[0]:
                cells = [_percent(mean(values) if values else None) for values in changes]
                lines.append([model, gamma, str(len(changes[0])), *cells])
    return table(head, lines)


def _percent(change: Mean | None) -> str:
    """Return a change as text, bold if it is clear of zero."""
    if change is None:
        return ""
    mark = "**" if change.is_clear else ""
    return f"{mark}{change.text(1, '+')} %{mark}"

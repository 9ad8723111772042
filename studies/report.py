"""Generate docs/study.md with its tables and plots from the committed results."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from train.report import write_text

from . import cost, generality, layers_report
from .arms import HERE, read_study, study_files
from .effects import Mean, Setting, effect, error_mean, mean, settings
from .pictures import plot_effects, plot_gamma, plot_summary
from .tables import table

Metrics = Mapping[str, tuple[str, int]]
"""Errors of a table: heading and number of decimals."""
METRICS: Metrics = {"force_mae": ("forces, meV/Å", 1), "energy_mae": ("energy, meV", 2)}
PROPERTIES: Metrics = {"energy_mae": ("MAE, 10⁻³ of the unit", 2)}
"""For QM9, where the target may be no energy."""
SAME = ("taps", "teachers")
"""Studies in which γ = 0 is the same for all settings of a model, so that its error is left out."""
NOTHING = "*Not run yet.*"
SECTIONS = {
    "generality": generality.report,
    "layers": layers_report.report,
    "cost": cost.report,
}
"""Sections with their own code, which returns the Markdown and draws the plots."""


def write_report(results: Path, docs: Path) -> None:
    """Insert the tables into page.md and write study.md and its plots.

    Args:
        results: Folder of the results.
        docs: Folder to write to.

    Raises:
        ValueError: page.md contains a marker of an unknown table or section.
    """
    found = {path.stem: settings(read_study(path), results / "arms") for path in study_files()}
    text = (HERE / "page.md").read_text(encoding="utf-8")
    tables = {
        name: effects_table(one, PROPERTIES if name == "qm9" else METRICS, name not in SAME)
        for name, one in found.items()
    }
    muon = [one for one in found["optimiser"] if one.labels["optimiser"].startswith("Muon")]
    tables |= {
        "gamma": gamma_table(found["gamma"]),
        "pooled": pooled_table(found["baseline"]),
        "pooled-ace": pooled_table(found["ace"]),
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
        raise ValueError(f"page.md contains unknown markers: {', '.join(left)}.")
    plot_summary(found, docs / "study-summary.png")
    plot_effects(found, docs / "study-effects.png")
    plot_gamma(found["gamma"], docs / "study-gamma.png")
    write_text(docs / "study.md", text)


def effects_table(
    found: Sequence[Setting], metrics: Metrics = METRICS, with_errors: bool = True
) -> str:
    """Return a table with a row per setting: each mean error without LKM and its change in %.

    The number of seeds is in the header if it is the same everywhere, else in each cell.
    """
    varying = [
        axis for axis in found[0].labels if len({setting.labels.get(axis) for setting in found}) > 1
    ]
    gammas = list(dict.fromkeys(g for setting in found for g in setting.gammas if g != "0"))
    shown = {m: text for m, text in metrics.items() if any(error_mean(s, "0", m) for s in found)}
    plain = {(k, m): error_mean(s, "0", m) for k, s in enumerate(found) for m in shown}
    counts = {one.n for one in plain.values() if one is not None}
    seeds = f" ({counts.pop()} seeds)" if len(counts) == 1 else ""
    head = list(varying)
    for heading, _ in shown.values():
        head += [f"{heading}{seeds}"] if with_errors else []
        name = "change" if with_errors else heading.split(",")[0]
        head += [f"{name} at γ = {gamma}, %" for gamma in gammas]
    lines = []
    for k, setting in enumerate(found):
        changes = {m: [effect(setting, gamma, m) for gamma in gammas] for m in shown}
        if not any(any(some) for some in changes.values()):
            continue
        cells = [setting.labels.get(axis, "") for axis in varying]
        for metric, (_, digits) in shown.items():
            one = plain[k, metric]
            text = "" if one is None else one.text(digits) + ("" if seeds else f" ({one.n})")
            cells += [text] if with_errors else []
            cells += map(_percent, changes[metric])
        lines.append(cells)
    return table(head, lines) if lines else NOTHING


def gamma_table(found: Sequence[Setting]) -> str:
    """Return the change of force and energy errors, with a row per γ and a column per distance."""
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
    """Return the mean change over the settings of each architecture and over all settings.

    The standard error is taken over settings.
    """
    models = [*dict.fromkeys(setting.labels["model"] for setting in found)]
    head = [
        "model",
        "γ",
        "settings",
        *(f"{heading.split(',')[0]}, %" for heading, _ in METRICS.values()),
    ]
    lines = []
    for gamma in dict.fromkeys(g for setting in found for g in setting.gammas if g != "0"):
        for model in [*models, "all"] if len(models) > 1 else models:
            some = [s for s in found if model in ("all", s.labels["model"])]
            changes = [
                [one.value for s in some if (one := effect(s, gamma, metric))] for metric in METRICS
            ]
            if changes[0]:
                cells = [_percent(mean(values) if values else None) for values in changes]
                lines.append([model, gamma, str(len(changes[0])), *cells])
    return table(head, lines)


def _percent(change: Mean | None) -> str:
    """Return a change as text, in bold if it is significant."""
    if change is None:
        return ""
    mark = "**" if change.is_clear else ""
    return f"{mark}{change.text(1, '+')}{mark}"

"""Make the report page of the documentation: its tables and pictures from the kept figures."""

import re
from collections.abc import Sequence
from pathlib import Path

from train.record import write_text

from . import cost, generality, layers_report
from .arms import HERE, read_study, study_files
from .effects import Setting, effect, error_mean, settings
from .pictures import plot_effects, plot_gamma

METRICS = {"force_mae": ("forces, meV/Å", ".1f"), "energy_mae": ("energy, meV", ".2f")}
"""Errors of the tables: heading and format."""
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
    for name, one in found.items():
        text = text.replace(f"<!-- table {name} -->", table(one))
    for name, report in SECTIONS.items():
        marker, folder = f"<!-- section {name} -->", results / name
        if marker in text:
            there = any(folder.glob("*.json"))
            text = text.replace(marker, report(folder, docs) if there else "Not run yet.")
    left = re.findall(r"<!-- (?:table|section) .*?-->", text)
    if left:
        raise ValueError(f"page.md asks for {', '.join(left)}, which nothing makes.")
    plot_effects(found, docs / "study-effects.png")
    plot_gamma(found["gamma"], docs / "study-gamma.png")
    write_text(docs / "study.md", text)


def table(found: Sequence[Setting]) -> str:
    """Return a table: for each setting and error the mean without LKM and the change by each γ."""
    varying = [
        axis for axis in found[0].labels if len({setting.labels.get(axis) for setting in found}) > 1
    ]
    gammas = list(dict.fromkeys(g for setting in found for g in setting.gammas if g != "0"))
    head = [*varying, "error", "γ = 0", *(f"γ = {gamma}" for gamma in gammas)]
    lines = [head, ["---"] * len(head)]
    for setting in found:
        for metric, (heading, spec) in METRICS.items():
            plain = error_mean(setting, "0", metric)
            if plain is None:
                continue
            changes = [effect(setting, gamma, metric) for gamma in gammas]
            cells = [f"{one.text('+.1f')} %" if one else "" for one in changes]
            labels = [setting.labels.get(axis, "") for axis in varying]
            lines.append([*labels, heading, f"{plain.text(spec)} ({plain.n})", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

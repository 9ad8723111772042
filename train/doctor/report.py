"""Text report of the examination of a data file."""

import numpy as np

from ..data import MIN_FRAMES_FOR_STIFFNESS, describe_labels
from .checks import IsolatedFigures
from .figures import Figures, Report


def report_text(report: Report, source: str) -> str:
    """Return the report as lines for a terminal."""
    faults = sum(finding.severity == "fault" for finding in report.findings)
    verdict = f"{faults} fault(s)" if faults else "no faults"
    lines = [f"{source}: {report.n_frames} frames, {verdict}", ""]
    if report.figures is not None:
        lines += [*_figure_lines(report.figures), ""]
    for finding in report.findings:
        lines.append(f"{finding.severity.upper()}  {finding.name}: {finding.message}")
    return "\n".join(lines).rstrip()


MAX_COMPOSITIONS = 8
"""Maximum number of compositions listed."""


def _figure_lines(figures: Figures) -> list[str]:
    """Return the tables of the text."""
    lines = [f"{'composition':<20}{'frames':>8}{'mean energy, eV':>20}{'spread, eV':>12}"]
    for c in figures.compositions[:MAX_COMPOSITIONS]:
        lines.append(f"{c.formula:<20}{c.n_frames:>8}{c.mean_energy:>20.4f}{c.spread:>12.4f}")
    if len(figures.compositions) > MAX_COMPOSITIONS:
        lines.append(f"and {len(figures.compositions) - MAX_COMPOSITIONS} more")
    rows = figure_rows(figures)
    return [*lines, "", *(f"{name:<24}{value}" for name, value in rows)]


def figure_rows(figures: Figures) -> list[tuple[str, str]]:
    """Return names and values of what was measured."""
    reference = figures.references
    rows = [*_isolated_row(figures.isolated), ("labels", describe_labels(figures.labels))]
    if figures.config_types:
        rows.append(("config_type", figures.config_types))
    rows += [
        ("reference energies", f"rank {reference.rank} of {len(reference.energies)}, residual "
         f"{reference.residual:.4g} eV/atom"),
        ("shortest distance", _shortest(figures)),
    ]  # fmt: skip
    if len(figures.largest_force):
        rows += [
            ("forces", f"rms {figures.rms_force:.3g} eV/Å, largest "
             f"{figures.largest_force.max():.3g} eV/Å"),
            ("net force, torque", _balance(figures)),
            ("force constant F²/kT", _stiffness(figures)),
        ]  # fmt: skip
    if figures.pairs is not None:
        p = figures.pairs
        rows.append(("ΔE against −F·ΔR", f"slope {p.slope:.2f}, correlation {p.correlation:.2f}, "
                     f"force constant {p.stiffness:.3g} eV/Å² ({len(p.work)} pairs, displacement "
                     f"{p.displacement:.2g} Å)"))  # fmt: skip
    if figures.potential is not None:
        q = figures.potential
        rows.append(("fitted pair potential", f"explains {100 * q.explained:.0f} % of the forces, "
                     f"correlation of energies {q.correlation:.2f}, ratio {q.ratio:.2f}, "
                     f"force constant {q.stiffness:.3g} eV/Å²"))  # fmt: skip
    if figures.bonds is not None:
        b = figures.bonds
        rows.append(("C–H bonds", f"force constant {b.stiffness:.3g} eV/Å², correlation "
                     f"{b.correlation:.2f} ({b.n_bonds} bonds)"))  # fmt: skip
    if figures.neighbours is not None:
        n = figures.neighbours
        found = f"{len(n.suspects)} of {n.n_frames}, by comparison with similar frames"
        rows.append(("inconsistent energies", found))
    return rows


def _isolated_row(isolated: IsolatedFigures) -> list[tuple[str, str]]:
    """Return the row for isolated atoms, if there are any."""
    if not isolated.n_frames:
        return []
    text = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in isolated.energies.items())
    text += " eV"
    if not np.isnan(isolated.binding):
        text += f"; binding energy of other frames {isolated.binding:.3g} eV/atom"
    return [("isolated atoms", f"{isolated.n_frames} frame(s): {text}")]


def _shortest(figures: Figures) -> str:
    closest = float(np.nanmin(figures.closest, initial=np.inf))
    if not np.isfinite(closest):
        return "unknown: no atoms are close to each other"
    contact = float(np.nanmin(figures.contacts, initial=np.inf))
    return f"{closest:.3f} Å, {contact:.2f} times the sum of covalent radii"


def _balance(figures: Figures) -> str:
    if np.isnan(figures.net_force):
        reason = "all forces are zero" if figures.rms_force == 0 else "all frames are periodic"
        return f"not tested: {reason}"
    return f"{figures.net_force:.2g}, {figures.net_torque:.2g} relative to uncorrelated forces"


def _stiffness(figures: Figures) -> str:
    if np.isnan(figures.stiffness):
        return f"unknown: no composition has {MIN_FRAMES_FOR_STIFFNESS} frames"
    return f"{figures.stiffness:.3g} eV/Å²"

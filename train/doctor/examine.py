"""Examination of labelled frames for errors that degrade training without stopping it."""

from dataclasses import replace

import numpy as np

from ..data import Frames, count_labels, describe_config_types
from .checks import (
    MIN_CONTACT,
    Finding,
    find_duplicates,
    find_unusable,
    judge_balance,
    judge_partial,
    list_compositions,
    mean_stiffness,
    measure_balance,
    measure_distances,
    measure_energies,
    measure_forces,
    measure_isolated,
)
from .consistency import compare_bonds, compare_neighbours, compare_pairs, compare_potential
from .figures import Figures, Report
from .labels import judge_labels


def diagnose(frames: Frames) -> Report:
    """Examine frames from any reader, also without its own checks.

    Frames with NaN or invalid elements are reported and excluded from all other checks.
    """
    findings, usable = find_unusable(frames)
    if not len(usable):
        findings.append(
            Finding("fault", "empty", "No frame is usable. Obtain or write the file again.")
        )
        return Report(tuple(findings), len(frames), None)
    good = frames.select(usable)
    isolated, atom_findings = measure_isolated(good, usable)
    findings += atom_findings
    if not good.isolated.all():
        usable = usable[~good.isolated]
        good = frames.select(usable)
    findings += find_duplicates(good, usable)
    closest, contacts, close = measure_distances(good, usable)
    findings += close
    energies = measure_energies(good, usable)
    findings += energies.findings
    findings += judge_partial(good, usable)
    labelled = np.flatnonzero(good.has_forces)
    if not len(labelled):
        good = replace(good, forces=None)
        labelled = np.arange(len(good))
    with_forces = good if len(labelled) == len(good) else good.select(labelled)
    forces, outliers, force_findings = measure_forces(with_forces, usable[labelled])
    findings += force_findings
    force_outliers = np.ones(len(good), bool)  # frames without forces are excluded
    force_outliers[labelled] = outliers
    lone = (contacts < MIN_CONTACT) | (np.isnan(contacts) & (good.sizes > 1))
    kept = np.flatnonzero(~(energies.outliers | force_outliers | lone))
    typical = good.select(kept)
    neighbours = compare_neighbours(typical)
    if neighbours is not None:
        neighbours = neighbours._replace(suspects=usable[kept[neighbours.suspects]])
    figures = Figures(
        usable=usable,
        labels=count_labels(good),
        config_types=describe_config_types(good),
        compositions=list_compositions(good),
        isolated=isolated,
        references=energies.references,
        residuals=energies.residuals,
        closest=closest,
        contacts=contacts,
        largest_force=forces,
        **measure_balance(with_forces),
        stiffness=mean_stiffness(typical),
        pairs=compare_pairs(typical),
        potential=compare_potential(typical),
        bonds=compare_bonds(typical),
        neighbours=neighbours,
    )
    findings += judge_balance(figures.net_force, figures.net_torque)
    findings += judge_labels(good, figures)
    return Report(tuple(sorted(findings, key=lambda f: f.severity)), len(frames), figures)

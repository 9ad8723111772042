"""Examination of labelled frames for what spoils a training without stopping it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.formula import Formula
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from lkm_calc.layers import MAX_NUMBER

from .doctor_labels import (
    Evidence,
    PairTest,
    PotentialTest,
    compare_pairs,
    compare_potential,
    guess_units,
)
from .edges import edges_of
from .frames import (
    MIN_DISTANCE,
    MIN_FRAMES_FOR_STIFFNESS,
    STIFFNESS_RANGE,
    Frames,
    lowest_energies,
)
from .reference import fit_reference_energies

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Finding(NamedTuple):
    """One thing that is wrong, or worth knowing."""

    severity: Literal["fault", "note"]
    name: str
    message: str
    """What was found, in which frames, and what to do."""


class Composition(NamedTuple):
    """The frames of one chemical formula."""

    formula: str
    n_frames: int
    mean_energy: float
    """eV"""
    spread: float
    """Standard deviation of the energy, eV."""


class References(NamedTuple):
    """Energies of the elements that add up best to the energies of the frames."""

    energies: dict[str, float]
    """eV per atom; the shortest of many solutions where the rank falls short."""
    rank: int
    residual: float
    """Root mean square of what is left, eV per atom."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; arrays run over the usable frames."""

    usable: Ints
    """Indices in the file of the frames that are finite and made of elements."""
    compositions: list[Composition]
    references: References
    residuals: Floats
    """(usable) energies less those of their atoms, eV."""
    closest: Floats
    """(usable) shortest distance in Å; NaN where no atom is near another."""
    contacts: Floats
    """(usable) shortest distance over the sum of covalent radii; NaN as above."""
    largest_force: Floats
    """(usable) eV/Å; empty without forces."""
    rms_force: float
    net_force: float
    """Root mean square of |ΣF| over that of √Σ|F|², 1 for unrelated forces."""
    net_torque: float
    """The same for Σ r × F, from the centre of each frame."""
    stiffness: float
    """Mean square force component over kT from the spread of energies, eV/Å²; NaN if unknown."""
    pairs: PairTest | None
    potential: PotentialTest | None


@dataclass(frozen=True)
class Report:
    """What `diagnose` found."""

    findings: tuple[Finding, ...]
    n_frames: int
    figures: Figures | None
    """None where no frame is usable."""

    @property
    def faulty(self) -> bool:
        """Whether there is a fault; notes do not count."""
        return any(finding.severity == "fault" for finding in self.findings)


def diagnose(frames: Frames) -> Report:
    """Examine frames from any reader, whose own checks may have been left out.

    NaN and atoms that are no element are reported; the other checks then see the other frames.
    """
    findings, usable = _unusable(frames)
    if not len(usable):
        findings.append(
            Finding("fault", "empty", "No frame can be used. Read the file again from its source.")
        )
        return Report(tuple(findings), len(frames), None)
    good = frames.select(usable)
    findings += _duplicates(good, usable)
    closest, contacts, close = _distances(good, usable)
    findings += close
    compositions, references, residuals, energy_outliers, kinds = _energies(good, usable)
    findings += kinds
    forces, force_outliers, force_findings = _forces(good, usable)
    findings += force_findings
    lone = (contacts < MIN_CONTACT) | (np.isnan(contacts) & (good.sizes > 1))
    typical = good.select(np.flatnonzero(~(energy_outliers | force_outliers | lone)))
    figures = Figures(
        usable=usable,
        compositions=compositions,
        references=references,
        residuals=residuals,
        closest=closest,
        contacts=contacts,
        largest_force=forces,
        **_force_figures(good),
        stiffness=_stiffness(typical),
        pairs=compare_pairs(typical),
        potential=compare_potential(typical),
    )
    findings += _balance(figures) + _labels(good, figures)
    return Report(tuple(sorted(findings, key=lambda f: f.severity)), len(frames), figures)


def _name(indices: Ints | Sequence[int]) -> str:
    """Name frames, the first few of many."""
    listed = ", ".join(str(int(i)) for i in indices[:5])
    word = "frame" if len(indices) == 1 else "frames"
    return f"{word} {listed}" + (f" and {len(indices) - 5} more" if len(indices) > 5 else "")


def _unusable(frames: Frames) -> tuple[list[Finding], Ints]:
    """Return findings on NaN and elements, and the frames free of both."""
    findings = []
    usable = np.ones(len(frames), bool)
    for name in ("positions", "energies", "forces", "cells", "stress"):
        values = getattr(frames, name)
        if values is None:
            continue
        wrong = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if name == "stress":  # NaN stands for a frame without the label
            wrong = np.isinf(values).any((1, 2))
        per_atom = name in ("positions", "forces")
        bad = np.unique(frames.atom_frame[wrong]) if per_atom else np.flatnonzero(wrong)
        usable[bad] = False
        if len(bad):
            message = f"{name} hold NaN or infinity in {_name(bad)}. Remove them, or label anew."
            findings.append(Finding("fault", "not finite", message))
    strange = (frames.numbers < 1) | (frames.numbers > MAX_NUMBER)
    bad = np.union1d(frames.atom_frame[strange], np.flatnonzero(frames.sizes < 1))
    usable[bad] = False
    if len(bad):
        message = f"{_name(bad)}: no atoms, or atomic numbers outside 1 (H) to 94 (Pu)."
        findings.append(Finding("fault", "elements", f"{message} Check which array holds them."))
    return findings, np.flatnonzero(usable)


def _counts(frames: Frames) -> tuple[Ints, Floats]:
    """Return the elements present and how many atoms of each a frame has, (frames, elements)."""
    elements, which = np.unique(frames.numbers, return_inverse=True)
    flat = np.bincount(
        frames.atom_frame * len(elements) + which, minlength=len(frames) * len(elements)
    )
    return elements, flat.reshape(len(frames), -1).astype(np.float64)


EXACT = 1e-5
"""Difference in Å of interatomic distances below which frames are one: files hold five digits
or float32. The closest two of 2000 rMD17 frames of a molecule differ by 0.004 Å."""
NEAR = 1e-3
"""The same for frames that teach nothing new: a hydrogen moves 0.01 Å in a step of MD."""
DUPLICATE_SHARE = 5e-4
"""Share of exact duplicates that a set may have. QM9 has 44 among 130,831 molecules."""
FINGERPRINT = 12
"""Sorted distances by which duplicates are looked up before they are compared in full."""


def _duplicates(frames: Frames, usable: Ints) -> list[Finding]:
    """Find frames that agree up to rigid motion, by their sorted distances; mirror images apart."""
    _, counts = _counts(frames)
    kinds = np.unique(counts, axis=0, return_inverse=True)[1].ravel()
    pairs = [_same(frames, np.flatnonzero(kinds == k)) for k in np.unique(kinds)]
    a, b, difference = np.concatenate(pairs, axis=1)
    first, second = usable[a.astype(np.int64)], usable[b.astype(np.int64)]
    findings = []
    mirrored = np.array(
        [_mirrored(frames, int(i), int(j)) for i, j in zip(a, b, strict=True)], bool
    )
    exact = (difference < EXACT) & ~mirrored
    if exact.any():
        gap = np.abs(frames.energies[a[exact].astype(int)] - frames.energies[b[exact].astype(int)])
        findings.append(
            Finding(
                "fault" if exact.sum() > DUPLICATE_SHARE * len(frames) else "note",
                "duplicates",
                f"{_name(np.unique(second[exact]))} repeat the geometry of others, the first that "
                f"of frame {first[exact][0]}; their energies differ by up to {gap.max():.2g} eV. "
                "Remove them: copies on both sides of a split make the validation worthless.",
            )
        )
    if not exact.all():
        message = (
            f"{_name(np.unique(second[~exact]))} are within {NEAR:g} Å of others or of their "
            f"mirror images, the first of frame {first[~exact][0]}. Sample further apart, or keep "
            "them in one part of a split."
        )
        findings.append(Finding("note", "near duplicates", message))
    return findings


def _mirrored(frames: Frames, a: int, b: int) -> bool:
    """Tell whether two frames of equal distances are mirror images and not the same.

    Both exist in a set of chiral molecules, with equal energies. Atoms must be in the same order.
    """
    one, other = (slice(frames.starts[f], frames.starts[f + 1]) for f in (a, b))
    if not np.array_equal(frames.numbers[one], frames.numbers[other]):
        return False
    x, y = (frames.positions[r] - frames.positions[r].mean(0) for r in (one, other))
    left, size, right = np.linalg.svd(x.T @ y)
    # The best superposition is a reflection, and a rotation is worse by more than NEAR.
    worse = 4 * size[-1] / len(x) > NEAR**2
    return bool(np.linalg.det(left @ right) < 0 and worse)


def _same(frames: Frames, group: Ints) -> Floats:
    """Return pairs of frames of one composition that agree, and by how many Å, (3, pairs).

    Equal fingerprints are first merged, so that many copies of one frame give one pair each.
    """
    size = int(frames.sizes[group[0]])
    n_distances = size * (size - 1) // 2
    if len(group) < 2 or n_distances == 0:
        return np.empty((3, 0))
    entries = np.unique(np.linspace(0, n_distances - 1, FINGERPRINT).astype(np.int64))
    prints = np.array([_sorted_distances(frames, f)[entries] for f in group.tolist()])
    _, kept, copy_of = np.unique(
        np.round(prints / EXACT), axis=0, return_index=True, return_inverse=True
    )
    candidates = [(kept[k], i) for i, k in enumerate(copy_of.ravel()) if kept[k] != i]
    candidates += [(kept[i], kept[j]) for i, j in cKDTree(prints[kept]).query_pairs(NEAR, p=np.inf)]
    found = []
    for i, j in candidates:
        a, b = sorted((int(group[i]), int(group[j])))
        gap = np.abs(_sorted_distances(frames, a) - _sorted_distances(frames, b)).max()
        if gap < NEAR:
            found.append((a, b, gap))
    return np.array(sorted(found), dtype=np.float64).reshape(-1, 3).T


def _sorted_distances(frames: Frames, f: int) -> Floats:
    """Return the interatomic distances of a frame in rising order, nearest images if periodic."""
    positions = frames.positions[frames.starts[f] : frames.starts[f + 1]]
    if frames.cells is None or frames.pbc is None or not frames.pbc[f].any():
        return np.sort(pdist(positions))
    i, j = np.triu_indices(len(positions), 1)
    vectors = positions[i] - positions[j]
    # Rounded fractions are the nearest image of a nearly rectangular cell, and in any cell they
    # do not change when atoms move by whole cell vectors.
    inverse = np.linalg.pinv(frames.cells[f])
    vectors -= np.where(frames.pbc[f], np.round(vectors @ inverse), 0) @ frames.cells[f]
    return np.sort(np.linalg.norm(vectors, axis=1))


MIN_CONTACT = 0.5
"""Shortest credible distance over the sum of covalent radii. The lowest of all rMD17 frames,
500 K, is 0.79; of Chignolin at up to 600 K, 0.79 too."""
MAX_TYPICAL_CONTACT = 1.45
"""Median of the same ratio with H or C in every frame above which positions are not in Å: bonded
frames have 0.84 to 0.97, in Bohr 1.6 to 1.84."""


def _distances(frames: Frames, usable: Ints) -> tuple[Floats, Floats, list[Finding]]:
    """Return the shortest distances, absolute and over covalent radii, and what is too close."""
    closest, contacts = np.full(len(frames), np.nan), np.full(len(frames), np.nan)
    radii = covalent_radii[frames.numbers]
    cutoff = 4 * float(radii.max())
    close, lost, pair = [], [], ""
    for f in range(len(frames)):
        try:
            edges, vectors = edges_of(frames, f, cutoff)
        except ValueError:
            lost.append(f)
            continue
        source, target = edges.edge_index
        if not len(source):
            continue
        distances = np.linalg.norm(vectors, axis=1)
        first = frames.starts[f]
        ratio = distances / (radii[first + source] + radii[first + target])
        closest[f], contacts[f] = distances.min(), ratio.min()
        if closest[f] < MIN_DISTANCE or contacts[f] < MIN_CONTACT:
            close.append(f)
            worst = int(ratio.argmin())
            pair = pair or _name_pair(
                frames, f, int(source[worst]), int(target[worst]), float(distances[worst])
            )
    findings = []
    if close:
        message = (
            f"atoms nearly coincide in {_name(usable[close])}; in the first, {pair}. Remove "
            "the frames, or convert positions to Å."
        )
        findings.append(Finding("fault", "too close", message))
    if lost:
        message = (
            f"the cell is flat or far too large, or atoms flew apart, in {_name(usable[lost])}."
        )
        findings.append(Finding("fault", "geometry", f"{message} Remove these frames."))
    return closest, contacts, findings


def _name_pair(frames: Frames, f: int, a: int, b: int, distance: float) -> str:
    """Name two atoms and their distance."""
    a, b = sorted((a, b))
    first, second = (chemical_symbols[frames.numbers[frames.starts[f] + k]] for k in (a, b))
    return f"atoms {a} ({first}) and {b} ({second}) are {distance:.3g} Å apart"


MIN_GROUP = 20
"""Frames of a composition from which its own median and spread are taken."""
OUTLIER_NOTE = 8.0
OUTLIER_FAULT = 20.0
"""Robust standard deviations from the median that are worth a look, and that are wrong. Energies
of all rMD17 files keep within 5.1, logarithms of their largest forces too."""
FORCE_OUTLIER_FAULT = 12.0
"""The same for the logarithm of the largest force: 10 to 40 times that of a typical frame."""
MIN_ENERGY_SPREAD = 0.01
"""Least robust spread in eV per atom, pooled over rare compositions whose residual is chemistry."""
MIN_FORCE_SPREAD = 0.15
"""Least robust spread of the logarithm of the largest force; that of rMD17 is 0.19 to 0.30."""


def _energies(
    frames: Frames, usable: Ints
) -> tuple[list[Composition], References, Floats, NDArray[np.bool_], list[Finding]]:
    """Return the table of compositions, reference energies, residuals, outliers and findings."""
    elements, counts = _counts(frames)
    kinds, which = np.unique(counts, axis=0, return_inverse=True)
    which = which.ravel()
    compositions = []
    for k, row in enumerate(kinds):
        e = frames.energies[which == k]
        formula = Formula.from_dict(
            {chemical_symbols[z]: int(n) for z, n in zip(elements, row, strict=True) if n}
        ).format("hill")
        compositions.append(Composition(formula, len(e), float(e.mean()), float(e.std())))
    compositions.sort(key=lambda c: -c.n_frames)
    _, reference, rank, residuals = fit_reference_energies(frames)
    per_atom = residuals / frames.sizes
    names = {chemical_symbols[z]: e for z, e in zip(elements, reference, strict=True)}
    references = References(names, rank, float(np.sqrt(np.mean(per_atom**2))))
    scores = _energy_scores(residuals, per_atom, which)
    findings = _outliers(scores, usable, "energies", OUTLIER_FAULT) + _about_compositions(
        frames, len(kinds), len(elements), rank
    )
    return compositions, references, residuals, scores > OUTLIER_NOTE, findings


def _energy_scores(residuals: Floats, per_atom: Floats, which: Ints) -> Floats:
    """Return robust deviations, of a composition's own energies where it has enough frames."""
    sizes = np.bincount(which)[which]
    scores = np.zeros(len(residuals))
    rare = sizes < MIN_GROUP
    if rare.sum() >= MIN_GROUP:
        scores[rare] = _robust(per_atom[rare], MIN_ENERGY_SPREAD)
    for k in np.unique(which[~rare]):
        own = which == k
        scores[own] = _robust(residuals[own], 1e-6)
    return np.abs(scores)


def _robust(values: Floats, least: float) -> Floats:
    """Return deviations from the median in units of 1.4826 times the median deviation."""
    deviations = values - np.median(values)
    spread = 1.4826 * float(np.median(np.abs(deviations)))
    scores: Floats = deviations / max(spread, least)
    return scores


def _outliers(scores: Floats, usable: Ints, what: str, fault: float) -> list[Finding]:
    """Report scores that are wrong, above ``fault``, and those worth a look."""
    remedy = "Look at them: a calculation that did not converge, or a state of its own."
    findings = []
    wrong = scores > fault
    odd = (scores > OUTLIER_NOTE) & ~wrong
    severities: tuple[Literal["fault", "note"], ...] = ("fault", "note")
    for mask, severity in zip((wrong, odd), severities, strict=True):
        if mask.any():
            message = (
                f"{what} of {_name(usable[mask])} lie up to {scores[mask].max():.3g} robust "
                f"standard deviations from the median. {remedy}"
            )
            findings.append(Finding(severity, "outliers", message))
    return findings


def _about_compositions(frames: Frames, n_kinds: int, n_elements: int, rank: int) -> list[Finding]:
    """Note what compositions leave undetermined, energies too low to be, and small files."""
    findings = []
    if rank < n_elements:
        message = (
            f"the {n_kinds} composition(s) fix {rank} of {n_elements} reference energies. Nothing "
            "is wrong, but a model knows the energy of other compositions only up to a constant."
        )
        findings.append(Finding("note", "reference energies", message))
    if len(frames) < MIN_FRAMES_FOR_STIFFNESS:
        message = f"{len(frames)} usable frame(s) are too few to judge units and outliers by."
        findings.append(Finding("note", "few frames", message))
    bound = lowest_energies(frames)
    low = np.flatnonzero(frames.energies < bound)
    if len(low):
        message = (
            f"energies, in frame {low[0]} of the usable {frames.energies[low[0]]:.6g} eV, are "
            f"below the {bound[low[0]]:.6g} eV that electrons can have. They are "
            "in a smaller unit; convert them to eV."
        )
        findings.append(Finding("fault", "low energies", message))
    return findings


def _forces(frames: Frames, usable: Ints) -> tuple[Floats, NDArray[np.bool_], list[Finding]]:
    """Return the largest force of each frame in eV/Å, which are outliers, and findings."""
    if frames.forces is None:
        message = (
            "the file has no forces: units, signs and shuffled labels cannot be judged. Energies "
            "alone train poorly; add forces if the reference method gives them."
        )
        finding = Finding("note", "no forces", message)
        return np.empty(0), np.zeros(len(frames), bool), [finding]
    norms = np.linalg.norm(frames.forces, axis=1)
    largest = np.maximum.reduceat(norms, frames.starts[:-1])
    scores = np.zeros(len(frames))
    if len(frames) >= MIN_GROUP:
        scores = _robust(np.log(np.maximum(largest, 1e-6)), MIN_FORCE_SPREAD)
    return largest, scores > OUTLIER_NOTE, _outliers(scores, usable, "forces", FORCE_OUTLIER_FAULT)


def _force_figures(frames: Frames) -> dict[str, float]:
    """Return the size of the forces, and how far they fail to balance in non-periodic frames."""
    names = ("rms_force", "net_force", "net_torque")
    if frames.forces is None:
        return dict.fromkeys(names, np.nan)
    starts = frames.starts[:-1]
    rms = float(np.sqrt(np.mean(frames.forces**2)))
    free = np.ones(len(frames), bool) if frames.pbc is None else ~frames.pbc.any(1)
    if not free.any() or rms == 0:
        return dict(zip(names, (rms, np.nan, np.nan), strict=True))
    centres = np.add.reduceat(frames.positions, starts) / frames.sizes[:, None]
    arms = frames.positions - centres[frames.atom_frame]
    shares = []
    for parts in (frames.forces, np.cross(arms, frames.forces)):
        net = (np.add.reduceat(parts, starts)[free] ** 2).sum()
        total = np.add.reduceat(parts**2, starts)[free].sum()
        shares.append(float(np.sqrt(net / total)) if total > 0 else 0.0)
    return dict(zip(names, (rms, *shares), strict=True))


def _stiffness(frames: Frames) -> float:
    """Return F²/kT, kT from the energies' spread √(n/2) kT; the median over compositions."""
    if frames.forces is None or not len(frames):
        return np.nan
    _, counts = _counts(frames)
    which = np.unique(counts, axis=0, return_inverse=True)[1].ravel()
    squares = np.add.reduceat((frames.forces**2).mean(1), frames.starts[:-1]) / frames.sizes
    found = []
    for k in np.flatnonzero(np.bincount(which) >= MIN_FRAMES_FOR_STIFFNESS):
        own = which == k
        freedom = max(1, 3 * int(frames.sizes[own][0]) - 6)
        temperature = float(np.std(frames.energies[own])) / np.sqrt(freedom / 2)
        found.append(float(squares[own].mean()) / max(temperature, 1e-12))
    return float(np.median(found)) if found else np.nan


MAX_IMBALANCE = 0.05
"""Share of net forces or torques that is wrong; original MD17, converged loosely, has 0.001."""


def _balance(figures: Figures) -> list[Finding]:
    """Report forces or torques that do not add up to zero."""
    findings = []
    for name, share in (("net force", figures.net_force), ("net torque", figures.net_torque)):
        if share > MAX_IMBALANCE:
            message = (
                f"the {name} of isolated frames is {100 * share:.2g} % of what unrelated forces "
                "have, and should be zero. Forces of some atoms are missing, belong to other "
                "frames, or hold an external field; if they belong to a crystal, give its cell."
            )
            findings.append(Finding("fault", name, message))
    return findings


MIN_CORRELATION = 0.5
"""Least correlation of ΔE with the work of the forces. The closest quarter of the pairs gives
0.93 to 1.00 in all rMD17 files; labels of other frames gave up to 0.10."""
FULL_CORRELATION = 0.8
"""Correlation of the same below which part of the labels is wrong: a fifth of the energies of
aspirin shuffled among themselves gave 0.71, a tenth 0.90."""
SLOPE_RANGE = (0.7, 1.4)
"""Credible slope of ΔE against the work; rMD17 has 0.87 to 1.02. Bohr for Å makes 0.53 or 1.9."""
MIN_EXPLAINED = 0.3
"""Least share of the square of the forces that a pair potential explains. rMD17 has 0.76 to 0.98,
Chignolin 0.75; labels of other frames 0.01."""
MIN_POTENTIAL_CORRELATION = 0.25
"""Least correlation of its energies with the labels. rMD17 has 0.48 to 0.95, Chignolin 0.95;
labels of other frames up to 0.10 with 500 frames."""
MIN_VERDICT_FRAMES = 100
"""Test frames from which a lack of this correlation is more than chance, 0.1 then."""
POTENTIAL_RATIO_RANGE = (0.35, 2.8)
"""Credible spread of labels over that of its energies; rMD17 has 0.69 to 0.99, Chignolin 1.1."""
MIN_FORCE = 0.05
"""Root mean square of force components in eV/Å below which frames may be relaxed, and what is left
of their forces noise; rMD17 has 1.0 to 1.3."""
TYPICAL_PAIR_STIFFNESS, TYPICAL_POTENTIAL_STIFFNESS = 46.0, 22.0
TYPICAL_STIFFNESS, TYPICAL_CONTACT = 30.0, 0.88
"""Geometric means over rMD17, in eV/Å², eV/Å² and of covalent radii."""


def _labels(frames: Frames, figures: Figures) -> list[Finding]:
    """Judge by both tests whether labels are of these frames, of this sign and unit."""
    findings = _related(figures)
    if findings and figures.rms_force < MIN_FORCE:
        message = f"forces of {figures.rms_force:.2g} eV/Å may be too small to test labels by."
        findings = [f._replace(severity="note", message=f"{message} {f.message}") for f in findings]
    elif not findings:
        findings = _mixed(figures) + _signs(figures) + _units(frames, figures)
    if frames.forces is not None and figures.pairs is None:
        said = "no test of the labels" if figures.potential is None else "only the coarser test"
        message = (
            f"too few frames are similar enough to compare energy differences with forces: {said} "
            "was possible. Nothing need be wrong."
        )
        findings.append(Finding("note", "few similar frames", message))
    return findings


def _related(figures: Figures) -> list[Finding]:
    """Report energies or forces that are unrelated to the geometry."""
    pairs, potential = figures.pairs, figures.potential
    if potential is not None and potential.explained < MIN_EXPLAINED:
        if pairs is not None and pairs.correlation >= MIN_CORRELATION:
            return []
        message = (
            "forces are not a function of the positions: a potential fitted to them explains "
            f"{100 * max(0, potential.explained):.1f} % of those of other frames, 75 % and more "
            "is usual. The forces belong to other frames or atoms; join them again by their index."
        )
        return [Finding("fault", "shuffled forces", message)]
    by_pairs = pairs is not None and abs(pairs.correlation) < MIN_CORRELATION
    by_potential = potential is not None and abs(potential.correlation) < _least(potential)
    if by_pairs or (pairs is None and by_potential):
        value = pairs.correlation if pairs is not None else np.nan
        other = potential.correlation if potential is not None else np.nan
        message = (
            "energies do not follow the forces: energy differences of similar frames correlate "
            f"with the work of the forces by {value:.2f}, the energies of a potential fitted to "
            f"the forces with the labels by {other:.2f}. The energies belong to other frames; "
            "join them again by their index."
        )
        return [Finding("fault", "shuffled energies", message)]
    return []


def _least(potential: PotentialTest) -> float:
    """Return the correlation below which a potential says no; with few frames it says nothing."""
    return MIN_POTENTIAL_CORRELATION if potential.n_frames >= MIN_VERDICT_FRAMES else 0.0


def _mixed(figures: Figures) -> list[Finding]:
    """Report energies that follow the forces, but less closely than those of one method do."""
    if figures.pairs is None or abs(figures.pairs.correlation) >= FULL_CORRELATION:
        return []
    message = (
        "energy differences of similar frames correlate with the work of the forces by only "
        f"{figures.pairs.correlation:.2f}, 0.93 and more is usual. Part of the labels belong to "
        "other frames, another method or calculations that did not converge; see the picture."
    )
    return [Finding("fault", "mixed labels", message)]


def _signs(figures: Figures) -> list[Finding]:
    """Report forces that are the gradient itself."""
    pairs, potential = figures.pairs, figures.potential
    if pairs is not None:
        opposed, value = pairs.correlation < 0, pairs.correlation
    elif potential is not None:
        value = potential.correlation
        # Of n unrelated frames the correlation is 0 ± 1/√n.
        opposed = value < -max(MIN_POTENTIAL_CORRELATION, 3 / np.sqrt(potential.n_frames))
    else:
        return []
    message = (
        f"forces have the opposite sign: energies follow them with a correlation of {value:.2f}. "
        "The file holds energy gradients; multiply them by −1."
    )
    return [Finding("fault", "sign of forces", message)] if opposed else []


def _units(frames: Frames, figures: Figures) -> list[Finding]:
    """Report energies, forces or positions in another unit, and which it looks like."""
    wrong, evidence = [], []
    for name, item, (low, high) in _evidence(frames, figures):
        evidence.append(item)
        if not low <= item.measured <= high:
            wrong.append(f"{name} is {item.measured:.3g} ({low:.2g} to {high:.2g} is credible)")
    if not wrong:
        return []
    guesses = [
        f"energies look like {energy}, forces like {force}, positions like {length}"
        for energy, force, length in guess_units(evidence)
    ]
    message = (
        f"the {'; the '.join(wrong)}. If eV, eV/Å and Å are meant, {', or '.join(guesses)}. "
        "Convert the file, or tell its reader."
    )
    return [Finding("fault", "units", message)]


def _evidence(frames: Frames, figures: Figures) -> list[tuple[str, Evidence, tuple[float, float]]]:
    """Return what speaks of units: a name, the figure and its credible range."""
    found = []
    pairs, potential = figures.pairs, figures.potential
    if pairs is not None:
        item = Evidence(abs(pairs.slope), 1.0, 0.1, (-1, 1, 1))
        full = abs(pairs.correlation) >= FULL_CORRELATION
        limits = SLOPE_RANGE if full else POTENTIAL_RATIO_RANGE
        found.append(("slope of ΔE against the work of the forces", item, limits))
        item = Evidence(abs(pairs.stiffness), TYPICAL_PAIR_STIFFNESS, 0.4, (0, -1, 1))
        name = "force constant between similar frames in eV/Å²"
        found.append((name, item, STIFFNESS_RANGE))
    elif potential is not None:
        item = Evidence(potential.ratio, 0.9, 0.3, (-1, 1, 1))
        name = "spread of energies over that of a potential fitted to the forces"
        found.append((name, item, POTENTIAL_RATIO_RANGE))
        item = Evidence(potential.stiffness, TYPICAL_POTENTIAL_STIFFNESS, 0.5, (0, -1, 1))
        name = "force constant of a potential fitted to the forces in eV/Å²"
        found.append((name, item, STIFFNESS_RANGE))
    elif figures.stiffness > 0:
        item = Evidence(figures.stiffness, TYPICAL_STIFFNESS, 0.6, (1, -2, 0))
        name = "force constant F²/kT in eV/Å²"
        found.append((name, item, STIFFNESS_RANGE))
    bonded = np.isfinite(figures.contacts)
    if bonded.any() and np.isin(frames.numbers, (1, 6)).any():
        item = Evidence(
            float(np.median(figures.contacts[bonded])), TYPICAL_CONTACT, 0.1, (0, 0, -1)
        )
        name = "shortest distance over covalent radii"
        found.append((name, item, (MIN_CONTACT, MAX_TYPICAL_CONTACT)))
    return [row for row in found if row[1].measured > 0]

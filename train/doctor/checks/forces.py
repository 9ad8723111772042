"""Sizes of the forces, and whether they balance."""

import numpy as np

from ...data import MIN_FRAMES_FOR_STIFFNESS, Frames
from .compositions import kinds_of
from .findings import MIN_GROUP, OUTLIER_NOTE, Finding, Floats, Ints, Mask, outlier_findings
from .statistics import robust_scores

FORCE_OUTLIER_FAULT = 12.0
"""Robust standard deviations of the logarithm of the largest force that are wrong: 10 to 40 times
the force of a typical frame."""
MIN_FORCE_SPREAD = 0.15
"""Least robust spread of the logarithm of the largest force; that of rMD17 is 0.19 to 0.30."""
MAX_IMBALANCE = 0.05
"""Share of net forces or torques that is wrong; original MD17, converged loosely, has 0.001."""


def measure_forces(frames: Frames, usable: Ints) -> tuple[Floats, Mask, list[Finding]]:
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
        scores = robust_scores(np.log(np.maximum(largest, 1e-6)), MIN_FORCE_SPREAD)
    findings = outlier_findings(scores, usable, "forces", FORCE_OUTLIER_FAULT)
    return largest, scores > OUTLIER_NOTE, findings


def measure_balance(frames: Frames) -> dict[str, float]:
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


def judge_balance(net_force: float, net_torque: float) -> list[Finding]:
    """Report forces or torques that do not add up to zero."""
    findings = []
    for name, share in (("net force", net_force), ("net torque", net_torque)):
        if share > MAX_IMBALANCE:
            message = (
                f"the {name} of isolated frames is {100 * share:.2g} % of what unrelated forces "
                "have, and should be zero. Forces of some atoms are missing, belong to other "
                "frames, or hold an external field; if they belong to a crystal, give its cell."
            )
            findings.append(Finding("fault", name, message))
    return findings


def mean_stiffness(frames: Frames) -> float:
    """Return F²/kT, kT from the energies' spread √(n/2) kT; the median over compositions."""
    if frames.forces is None or not len(frames):
        return np.nan
    which = kinds_of(frames)
    squares = np.add.reduceat((frames.forces**2).mean(1), frames.starts[:-1]) / frames.sizes
    found = []
    for k in np.flatnonzero(np.bincount(which) >= MIN_FRAMES_FOR_STIFFNESS):
        own = which == k
        freedom = max(1, 3 * int(frames.sizes[own][0]) - 6)
        temperature = float(np.std(frames.energies[own])) / np.sqrt(freedom / 2)
        found.append(float(squares[own].mean()) / max(temperature, 1e-12))
    return float(np.median(found)) if found else np.nan

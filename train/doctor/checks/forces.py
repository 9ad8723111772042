"""Magnitudes of the forces, net forces and torques."""

import numpy as np

from ...data import MIN_FRAMES_FOR_STIFFNESS, Frames
from .compositions import kinds_of
from .findings import MIN_GROUP, OUTLIER_NOTE, Finding, Floats, Ints, Mask, outlier_findings
from .statistics import robust_scores

FORCE_OUTLIER_FAULT = 12.0
"""Robust standard deviations of the logarithm of the largest force that count as a fault: 10 to 40
times the force of a typical frame."""
MIN_FORCE_SPREAD = 0.15
"""Minimum robust spread of the logarithm of the largest force; rMD17 has 0.19 to 0.30."""
MAX_IMBALANCE = 0.05
"""Relative net force or torque that counts as a fault; the loosely converged original MD17 has
0.001."""


def measure_forces(frames: Frames, usable: Ints) -> tuple[Floats, Mask, list[Finding]]:
    """Return the largest force of each frame in eV/Å, whether it is an outlier, and findings."""
    if frames.forces is None:
        message = (
            "the file has no forces, so units, signs and shuffled labels cannot be tested. "
            "Training on energies only is inefficient; add forces if the method provides them."
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
    """Return the RMS force and the relative net force and torque of non-periodic frames."""
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
    """Report net forces or torques that are not zero."""
    findings = []
    for name, share in (("net force", net_force), ("net torque", net_torque)):
        if share > MAX_IMBALANCE:
            message = (
                f"the {name} of isolated frames is {100 * share:.2g} % of that of uncorrelated "
                "forces, but should be zero. Forces of some atoms are missing, belong to other "
                "frames, or include an external field; for a crystal, set the cell."
            )
            findings.append(Finding("fault", name, message))
    return findings


def mean_stiffness(frames: Frames) -> float:
    """Return F²/kT, with kT from the spread of the energies √(n/2) kT; median over compositions."""
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

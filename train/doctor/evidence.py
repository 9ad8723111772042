"""Evidence for the units of a file."""

import numpy as np

from ..data import STIFFNESS_RANGE, Frames
from .checks import MIN_CONTACT, Finding
from .consistency import FULL_CORRELATION, Evidence, guess_units
from .figures import Figures

SLOPE_RANGE = (0.7, 1.4)
"""Plausible slope of ΔE against the work; rMD17 has 0.87 to 1.02. Bohr for Å gives 0.53 or 1.9."""
POTENTIAL_RATIO_RANGE = (0.35, 2.8)
"""Plausible ratio of the spread of the labels to that of the energies of the fitted potential;
rMD17 has 0.69 to 0.99, Chignolin 1.1."""
MAX_TYPICAL_CONTACT = 1.45
"""Upper bound of the median ratio of shortest distance to covalent radii in frames with H or C:
bonded frames have 0.84 to 0.97 in Å and 1.6 to 1.84 in Bohr."""
BOND_STIFFNESS_RANGE = (20.0, 46.0)
"""Plausible force constant of C–H bonds: 27 to 35 in rMD17, 31 in Chignolin, and 10 to 15 % more
with Hartree–Fock. Bohr for Å gives 14 to 18 or 51 to 66. Used only if energy differences of similar
frames are not available."""
TYPICAL_BOND_STIFFNESS = 32.0
TYPICAL_PAIR_STIFFNESS, TYPICAL_POTENTIAL_STIFFNESS = 46.0, 22.0
TYPICAL_STIFFNESS, TYPICAL_CONTACT = 30.0, 0.88
"""Geometric means over rMD17, in eV/Å², eV/Å² and of covalent radii."""


def judge_units(frames: Frames, figures: Figures) -> list[Finding]:
    """Report energies, forces or positions in a wrong unit, and guess the unit."""
    wrong, evidence = [], []
    for name, item, (low, high) in _evidence(frames, figures):
        evidence.append(item)
        if not low <= item.measured <= high:
            wrong.append(f"{name} is {item.measured:.3g} (plausible: {low:.2g} to {high:.2g})")
    if not wrong:
        return []
    guesses = [
        f"energies look like {energy}, forces like {force}, positions like {length}"
        for energy, force, length in guess_units(evidence)
    ]
    message = (
        f"the {'; the '.join(wrong)}. Assuming eV, eV/Å and Å, {', or '.join(guesses)}. "
        "Convert the file, or set the units for the reader."
    )
    return [Finding("fault", "units", message)]


def _evidence(frames: Frames, figures: Figures) -> list[tuple[str, Evidence, tuple[float, float]]]:
    """Return quantities that depend on the units: name, evidence and plausible range."""
    found = []
    pairs, potential = figures.pairs, figures.potential
    if pairs is None and figures.bonds is not None:
        item = Evidence(figures.bonds.stiffness, TYPICAL_BOND_STIFFNESS, 0.1, (0, -1, 1))
        name = "force constant of C–H bonds in eV/Å²"
        found.append((name, item, BOND_STIFFNESS_RANGE))
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

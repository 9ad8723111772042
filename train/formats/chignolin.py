"""Reader of the Chignolin npz file: conformations of a mini-protein of 166 atoms.

Keys: N (frames) numbers of atoms, R (atoms, 3) in Å, Z (atoms), E (frames) in Hartree and F
(atoms, 3), the energy gradient in Hartree/Bohr, so forces are −F. The set was published with ViSNet
(Wang et al. 2024, doi.org/10.1038/s41467-023-43720-2).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lkm_calc.files import expanded
from lkm_calc.units import BOHR, HARTREE

from ..data import Frames, check_frames
from .arrays import flat_starts, load_npz, whole_numbers

SELF_ENERGIES: Mapping[int, float] = {
    1: -0.496665677271 * HARTREE,
    6: -37.8289474402 * HARTREE,
    7: -54.5677547104 * HARTREE,
    8: -75.0321126521 * HARTREE,
    16: -398.063946327 * HARTREE,
}
"""Energies of single atoms in eV, by atomic number, at the DFT level of the labels.

The reader returns total energies, and training fits its own reference energies. Subtract these to
compare with published energies.
"""


def read_chignolin(path: str | Path, check_units: bool = True) -> Frames:
    """Read a file in the layout of the Chignolin set, for any molecules.

    Args:
        path: The npz file.
        check_units: Reject energies and forces that are implausible in the units of the format.

    Returns:
        Frames with total energies in eV and forces in eV/Å.

    Raises:
        DataError: The file is missing or damaged, lacks keys, or has inconsistent arrays.
    """
    path = expanded(path)
    arrays = load_npz(path, ("N", "Z", "R", "E", "F"))
    starts = flat_starts(path, arrays, by_frame=("E",), vectors=("R", "F"))
    frames = Frames(
        numbers=whole_numbers(path, "Z", arrays["Z"]),
        positions=arrays["R"].astype(np.float64),
        energies=arrays["E"].astype(np.float64) * HARTREE,
        forces=-arrays["F"].astype(np.float64) * (HARTREE / BOHR),
        starts=starts,
    )
    check_frames(frames, str(path), check_units)
    return frames

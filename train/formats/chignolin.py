"""Reader of the Chignolin npz file: one mini-protein of 166 atoms in many conformations.

Keys of the file: N (frames) numbers of atoms, R (atoms, 3) in Å, Z (atoms), E (frames) in Hartree
and F (atoms, 3), the energy gradient in Hartree/Bohr, so that forces are −F. The set comes with
ViSNet (Wang et al. 2024, doi.org/10.1038/s41467-023-43720-2). Units are converted here and nowhere
else.
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
"""Energies of single atoms in eV, by atomic number, at the level of the DFT labels of the set.

The reader keeps total energies: training fits reference energies by least squares, whatever the
level of the labels. Subtract these to compare with energies that others have published.
"""


def read_chignolin(path: str | Path, check_units: bool = True) -> Frames:
    """Read a file in the layout of the Chignolin set, of any molecules.

    Args:
        path: The npz file.
        check_units: Refuse energies and forces that are not credible in the format's units.

    Returns:
        Frames with total energies in eV and forces in eV/Å.

    Raises:
        DataError: The file is missing, damaged, lacks keys, or its arrays do not fit together.
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

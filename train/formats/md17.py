"""Reader of the MD17 and revised MD17 npz files.

MD17: Chmiela et al. 2017 (keys z, R, E, F). Revised MD17: Christensen and von Lilienfeld 2020
(nuclear_charges, coords, energies, forces, and old_energies and old_forces with the original MD17
labels of the same frames). Both are in kcal/mol and kcal/mol/Å.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lkm_calc.files import expanded

from ..data import ENERGY_UNITS, LENGTH_UNITS, DataError, Frames, check_frames, factor
from .arrays import load_npz, npz_names, whole_numbers
from .label_names import USUAL_KEYS, LabelKeys

Labels = Literal["revised", "original"]

# Names of numbers, positions, energies and forces by (layout, labels).
_MD17 = ("z", "R", "E", "F")
_RMD17 = ("nuclear_charges", "coords", "energies", "forces")
_RMD17_ORIGINAL = ("nuclear_charges", "coords", "old_energies", "old_forces")


def read_md17(
    path: str | Path,
    labels: Labels = "revised",
    check_units: bool = True,
    energy_unit: str = "kcal/mol",
    length_unit: str = "Å",
    label_keys: LabelKeys = USUAL_KEYS,
) -> Frames:
    """Read an MD17 or rMD17 npz file.

    Args:
        path: The file; the layout is detected from its keys.
        labels: "revised", or "original" for the MD17 labels in an rMD17 file. MD17 files contain
            only the latter and ignore this option.
        check_units: Reject energies and forces that are implausible in their units.
        energy_unit: Unit of energies, for custom files in this layout.
        length_unit: Unit of lengths, likewise.
        label_keys: Names of energies and forces, if they differ from those of the layouts.

    Returns:
        Frames in eV and eV/Å.

    Raises:
        DataError: The file is missing or damaged, lacks keys, or has inconsistent arrays.
    """
    path = expanded(path)
    if labels not in ("revised", "original"):
        raise DataError(f"labels is {labels!r}; choose 'revised' or 'original'.")
    keys, (numbers, positions, energies, forces) = _load_arrays(path, labels, label_keys)
    energies = energies.reshape(-1) if energies.shape[1:] == (1,) else energies
    _check_shapes(path, keys, numbers, positions, energies, forces)
    energy = factor(energy_unit, ENERGY_UNITS, "energy_unit")
    length = factor(length_unit, LENGTH_UNITS, "length_unit")
    frames = Frames.of_one_molecule(
        whole_numbers(path, keys[0], numbers),
        positions.astype(np.float64) * length,
        energies.astype(np.float64) * energy,
        forces.astype(np.float64) * (energy / length),
    )
    check_frames(frames, str(path), check_units)
    return frames


def _load_arrays(
    path: Path, labels: Labels, label_keys: LabelKeys
) -> tuple[tuple[str, str, str, str], list[NDArray[np.generic]]]:
    """Return the names and the arrays of numbers, positions, energies and forces."""
    origin = (
        "Revised MD17 is available at doi.org/10.6084/m9.figshare.12672038, MD17 at "
        "quantum-machine.org/gdml/data/npz."
    )
    keys = _find_keys(npz_names(path, origin), labels, path, label_keys)
    arrays = load_npz(path, keys, origin)
    return keys, [arrays[key] for key in keys]


def _find_keys(
    present: set[str], labels: Labels, path: Path, label_keys: LabelKeys
) -> tuple[str, str, str, str]:
    """Return the names of the four arrays in the layout of the file, with custom label names."""
    usual = (_RMD17 if labels == "revised" else _RMD17_ORIGINAL, _MD17)
    layouts = [
        (numbers, positions, label_keys.energy or energies, label_keys.forces or forces)
        for numbers, positions, energies, forces in usual
    ]
    for keys in layouts:
        if present.issuperset(keys):
            return keys
    raise DataError(
        f"{path} contains the arrays {', '.join(sorted(present)) or 'none'}. An rMD17 file must "
        f"contain {', '.join(layouts[0])}; an MD17 file {', '.join(layouts[1])}. Rename its "
        "arrays, convert it, or set --data.energy_key and --data.forces_key."
    )


def _check_shapes(
    path: Path,
    keys: tuple[str, str, str, str],
    numbers: NDArray[np.generic],
    positions: NDArray[np.generic],
    energies: NDArray[np.generic],
    forces: NDArray[np.generic],
) -> None:
    """Raise a DataError if the arrays are not (N), (M, N, 3), (M) and (M, N, 3) numbers."""
    n_atoms = numbers.shape[0] if numbers.ndim == 1 else -1
    n_frames = len(energies) if energies.ndim == 1 else -1
    expected = ((n_atoms,), (n_frames, n_atoms, 3), (n_frames,), (n_frames, n_atoms, 3))
    arrays = (numbers, positions, energies, forces)
    if (
        n_atoms < 1
        or n_frames < 1
        or any(a.shape != s for a, s in zip(arrays, expected, strict=True))
    ):
        found = ", ".join(f"{k} {a.shape}" for k, a in zip(keys, arrays, strict=True))
        raise DataError(
            f"{path}: the arrays have inconsistent shapes: {found}. For M frames of N atoms they "
            "must be (N,), (M, N, 3), (M,) and (M, N, 3), with M and N at least 1."
        )

"""Labelled structures in memory, in eV and Å, and the training/validation split."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell, minkowski_reduce
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from lkm_calc.graph import edges_within
from lkm_calc.nn import MAX_NUMBER

LONE_BOX = 8.0
"""Minimum distance in Å between images of an isolated atom in a periodic box, as plane-wave codes
use it; the largest nearest-neighbour distance in a crystal of an element is 5.3 Å (caesium)."""


class DataError(ValueError):
    """A data file or its contents cannot be used; the message says why and what to do."""


_ARRAYS = ("numbers", "positions", "energies", "forces", "cells", "pbc", "stress")


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Structures of any size in flat arrays: atoms of frame f are rows starts[f] : starts[f+1]."""

    numbers: NDArray[np.int64]
    """(atoms) atomic numbers."""
    positions: NDArray[np.float64]
    """(atoms, 3) in Å."""
    energies: NDArray[np.float64]
    """(frames) total energies in eV, or another property in its unit."""
    starts: NDArray[np.int64]
    """(frames + 1) first row of each frame, and the total number of rows."""
    forces: NDArray[np.float64] | None = None
    """(atoms, 3) in eV/Å; None without labels, NaN for single frames without."""
    cells: NDArray[np.float64] | None = None
    """(frames, 3, 3) cell vectors as rows in Å; None if no frame is periodic."""
    pbc: NDArray[np.bool_] | None = None
    """(frames, 3) periodic directions; None if no frame is periodic."""
    stress: NDArray[np.float64] | None = None
    """(frames, 3, 3) in eV/Å³; None without labels, NaN for single frames without."""
    energy_unit: str = "eV"
    """Unit of ``energies``, which may be another property."""
    config_types: NDArray[np.character] | None = None
    """(frames) ``config_type`` of each frame, empty for frames without; None if there are none."""

    def __len__(self) -> int:
        return len(self.energies)

    @classmethod
    def of_one_molecule(
        cls,
        numbers: NDArray[np.int64],
        positions: NDArray[np.float64],
        energies: NDArray[np.float64],
        forces: NDArray[np.float64],
    ) -> "Frames":
        """Create frames of one molecule from numbers (N), positions and forces (M, N, 3)."""
        n_frames, n_atoms = positions.shape[:2]
        return cls(
            numbers=np.tile(numbers, n_frames),
            positions=positions.reshape(-1, 3),
            forces=forces.reshape(-1, 3),
            energies=energies,
            starts=np.arange(n_frames + 1) * n_atoms,
        )

    @classmethod
    def joined(cls, parts: "Sequence[Frames]") -> "Frames":
        """Join frames with the same labels and unit, each part periodic or each not.

        Config types are not kept.

        Raises:
            DataError: Some parts have a label or cells, and others do not.
        """

        def together(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            missing = sum(value is None for value in values)
            if 0 < missing < len(values):
                raise DataError(
                    f"{missing} of {len(values)} sets of frames to join have no {name}. Use the "
                    "same labels for all."
                )
            return None if missing else np.concatenate(values)

        sizes = np.concatenate([part.sizes for part in parts])
        return cls(
            starts=np.concatenate([[0], np.cumsum(sizes)]),
            energy_unit=parts[0].energy_unit,
            **{name: together(name) for name in _ARRAYS},
        )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(frames) number of atoms of each frame."""
        return np.diff(self.starts)

    @property
    def isolated(self) -> NDArray[np.bool_]:
        """(frames) whether a frame is an isolated atom: a single atom without nearby images.

        A crystal with one atom per cell is not.
        """
        alone: NDArray[np.bool_] = self.sizes == 1
        if self.cells is not None and self.pbc is not None:
            for f in np.flatnonzero(alone & self.pbc.any(1)):
                repeats = minkowski_reduce(self.cells[f], self.pbc[f])[0][self.pbc[f]]
                alone[f] = np.linalg.norm(repeats, axis=1).min() >= LONE_BOX
        return alone

    @property
    def has_forces(self) -> NDArray[np.bool_]:
        """(frames) whether a frame has force labels, that is, forces that are not all NaN."""
        if self.forces is None:
            return np.zeros(len(self), bool)
        labelled = ~np.isnan(self.forces).all(1)
        return np.bincount(self.atom_frame, labelled, minlength=len(self)) > 0

    @property
    def labelled_forces(self) -> NDArray[np.float64] | None:
        """(labelled atoms, 3) forces of the frames with force labels; None if there are none."""
        labelled = self.has_forces
        if self.forces is None or labelled.all():
            return self.forces
        return self.forces[labelled[self.atom_frame]] if labelled.any() else None

    @property
    def usable_stress(self) -> NDArray[np.float64] | None:
        """Stress labels, NaN for molecules, for which codes write zeros; None if there are none."""
        if self.stress is None or self.pbc is None:
            return None
        stress = np.where(np.any(self.pbc, axis=1, keepdims=True)[:, None], self.stress, np.nan)
        return stress if np.isfinite(stress).all((1, 2)).any() else None

    @property
    def atom_frame(self) -> NDArray[np.int64]:
        """(atoms) the frame to which each atom belongs."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def atoms(self, frame: int) -> Atoms:
        """Return the structure of a frame, without labels."""
        rows = slice(self.starts[frame], self.starts[frame + 1])
        return Atoms(
            self.numbers[rows],
            self.positions[rows],
            cell=None if self.cells is None else self.cells[frame],
            pbc=None if self.pbc is None else self.pbc[frame],
        )

    def select(self, indices: NDArray[np.int64]) -> "Frames":
        """Return the frames with the given indices, in that order."""
        rows = np.concatenate(
            [np.arange(self.starts[f], self.starts[f + 1]) for f in indices]
            or [np.empty(0, np.int64)]
        )

        def taken(values: NDArray[Any] | None, order: NDArray[np.int64]) -> NDArray[Any] | None:
            return None if values is None else values[order]

        return Frames(
            numbers=self.numbers[rows],
            positions=self.positions[rows],
            energies=self.energies[indices],
            starts=np.concatenate([[0], np.cumsum(self.sizes[indices])]),
            forces=taken(self.forces, rows),
            cells=taken(self.cells, indices),
            pbc=taken(self.pbc, indices),
            stress=taken(self.stress, indices),
            energy_unit=self.energy_unit,
            config_types=taken(self.config_types, indices),
        )


def check_frames(
    frames: Frames, source: str, check_units: bool = True, partial: bool = False
) -> None:
    """Raise a DataError if the frames are invalid.

    All numbers must be finite and all elements must exist; with ``check_units``, the magnitudes of
    energies and forces must be plausible in eV and eV/Å. With ``partial``, all forces of a frame
    may be NaN if it has no force labels.
    """
    for name, values in (("positions", frames.positions), ("forces", frames.forces)):
        if values is None:
            continue
        wrong = ~np.isfinite(values).all(1)
        if partial and name == "forces":
            wrong &= frames.has_forces[frames.atom_frame]
        bad = np.unique(frames.atom_frame[wrong])
        if len(bad):
            raise DataError(
                f"{source}: {name} contain NaN or infinity in {len(bad)} frame(s) (first: "
                f"{bad[:5].tolist()}). Remove these frames, or obtain the file again."
            )
    _check_cells(frames, source)
    bad = np.flatnonzero(~np.isfinite(frames.energies))
    if len(bad):
        raise DataError(
            f"{source}: energies contain NaN or infinity in {len(bad)} frame(s) (first: "
            f"{bad[:5].tolist()}). Remove these frames, or obtain the file again."
        )
    strange = np.setdiff1d(frames.numbers, np.arange(1, MAX_NUMBER + 1))
    if len(strange):
        raise DataError(
            f"{source}: {strange[:5].tolist()} are not valid atomic numbers, which are 1 (H) to 94 "
            "(Pu). Check which array of the file contains the atomic numbers."
        )
    _check_distances(frames, source)
    forces = frames.labelled_forces
    if check_units and forces is not None and not frames.isolated[frames.has_forces].all():
        _check_magnitudes(frames, forces, source)


def _check_cells(frames: Frames, source: str) -> None:
    """Raise a DataError if a cell is not finite, or flat in the periodic directions."""
    if frames.cells is None or frames.pbc is None:
        return
    bad = np.unique(np.argwhere(~np.isfinite(frames.cells))[:, 0])
    if len(bad):
        raise DataError(
            f"{source}: cells contain NaN or infinity in {len(bad)} frame(s) (first: "
            f"{bad[:5].tolist()}). Remove these frames."
        )
    flat = [
        f
        for f, (cell, pbc) in enumerate(zip(frames.cells, frames.pbc, strict=True))
        if pbc.any() and np.linalg.matrix_rank(cell[pbc]) < pbc.sum()
    ]
    if flat:
        raise DataError(
            f"{source}: {len(flat)} frame(s) (first: {flat[:5]}) are periodic in directions whose "
            "cell vectors are zero or parallel. Set the cell, or pbc = False for molecules."
        )


MIN_DISTANCE = 0.3
"""Minimum distance of two nuclei in Å; the bond length of H₂ is 0.74 Å."""


def _check_distances(frames: Frames, source: str) -> None:
    """Raise a DataError if two atoms of a frame nearly coincide."""
    for f, (first, last) in enumerate(pairwise(frames.starts)):
        distances = pdist(frames.positions[first:last])
        if frames.cells is not None and frames.pbc is not None and frames.pbc[f].any():
            distances = _distances_of_images(
                frames.positions[first:last], frames.cells[f], frames.pbc[f]
            )
        if len(distances) and distances.min() < MIN_DISTANCE:
            raise DataError(
                f"{source}: two atoms of frame {f} are {distances.min():.3g} Å apart; at least "
                f"{MIN_DISTANCE} Å is plausible. Remove the frame, or convert positions to Å."
            )


def _distances_of_images(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the short distances in Å of atoms and their images."""
    return edges_within(positions, MIN_DISTANCE, np.asarray(complete_cell(cell)), pbc)[1]


FORCE_RANGE = (0.01, 50.0)
"""Plausible RMS force component in eV/Å, from nearly relaxed to very hot."""
STIFFNESS_RANGE = (3.0, 300.0)
"""Plausible mean force constant of a molecule in eV/Å²; the rMD17 molecules have 25 to 40."""
MIN_FRAMES_FOR_STIFFNESS = 20
COVALENT = (1, 6, 7, 8, 9)
"""Elements with such stiff bonds, unlike soft metals and noble gases."""


def lowest_energies(frames: Frames) -> NDArray[np.float64]:
    """Return lower bounds of the energies (frames) in eV.

    Thomas–Fermi: the total energy of an atom is about −20.9 Z^(7/3) eV, with a margin of 20 %.
    """
    bound: NDArray[np.float64] = np.add.reduceat(frames.numbers ** (7 / 3), frames.starts[:-1])
    return -1.2 * 20.9 * bound


def _check_magnitudes(frames: Frames, forces: NDArray[np.float64], source: str) -> None:
    """Raise a DataError if energies or forces are implausible in eV and eV/Å."""
    hint = (
        "The reader converts from the units of the format (kcal/mol and kcal/mol/Å for MD17 and "
        "rMD17, eV and Å for files read by ASE unless data.energy_unit and data.length_unit are "
        "set). Convert the file, or set the units. If the values are correct, set "
        "data.check_units = false."
    )
    rms = float(np.sqrt(np.mean(forces**2)))
    low, high = FORCE_RANGE
    if not low <= rms <= high:
        raise DataError(
            f"{source}: the RMS force component is {rms:.3g} eV/Å after conversion; {low:g} to "
            f"{high:g} is plausible. {hint}"
        )
    bound = lowest_energies(frames)
    low_frames = np.flatnonzero(frames.energies < bound)
    if len(low_frames):
        f = low_frames[0]
        raise DataError(
            f"{source}: the energy of frame {f} is {frames.energies[f]:.6g} eV after conversion, "
            f"below the lower bound of {bound[f]:.6g} eV for its electrons. {hint}"
        )
    chosen = frames.has_forces & ~frames.isolated
    if not chosen.all():
        frames = frames.select(np.flatnonzero(chosen))
    _check_stiffness(frames, rms, source, hint)


def _check_stiffness(frames: Frames, rms: float, source: str, hint: str) -> None:
    """Raise a DataError if energies and forces are in inconsistent units.

    In a harmonic potential at temperature T the mean square force is kT times the mean force
    constant, and the standard deviation of the energy is kT √(n/2) for n degrees of freedom. A
    factor s in both units changes the resulting force constant by s, in one of them by s² or 1/s.
    """
    if np.mean(np.isin(frames.numbers, COVALENT)) < 0.5:
        return
    one_composition = len(np.unique(frames.sizes)) == 1 and not np.any(
        np.diff(np.sort(frames.numbers.reshape(len(frames), -1), axis=1), axis=0)
    )
    if len(frames) < MIN_FRAMES_FOR_STIFFNESS or not one_composition:
        return
    freedom = max(1, 3 * int(frames.sizes[0]) - 6)
    temperature = float(np.std(frames.energies)) / np.sqrt(freedom / 2)
    stiffness = rms**2 / max(temperature, 1e-12)
    low, high = STIFFNESS_RANGE
    if not low <= stiffness <= high:
        raise DataError(
            f"{source}: energies (standard deviation {np.std(frames.energies):.3g} eV) and forces "
            f"(RMS {rms:.3g} eV/Å) imply a force constant of {stiffness:.3g} eV/Å²; {low:g} to "
            f"{high:g} is plausible for a molecule, so one or both are in a wrong unit. {hint}"
        )


@dataclass(frozen=True)
class Split:
    """Indices of training, validation and test frames in their files."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Test frames drawn from the same file, if any."""


def random_split(
    n_frames: int,
    n_train: int,
    n_validation: int,
    seed: int,
    n_isolated: int = 0,
    n_test: int = 0,
) -> Split:
    """Draw disjoint training, validation and test frames.

    Args:
        n_frames: Number of frames in the file, without isolated atoms.
        n_train: Number of training frames.
        n_validation: Number of validation frames.
        seed: Random seed.
        n_isolated: Number of isolated atoms in the file, for the error message.
        n_test: Number of test frames.

    Raises:
        DataError: There are too few frames, or no training or validation frames.
    """
    not_counted = f" ({n_isolated} isolated atom(s) not counted)" if n_isolated else ""
    end = n_train + n_validation + n_test
    if n_train < 1 or n_validation < 1 or end > n_frames:
        tests = f", data.n_validation = {n_validation} and data.n_test = {n_test}"
        others = tests if n_test else f" and data.n_validation = {n_validation}"
        raise DataError(
            f"data.n_train = {n_train}{others} do not fit the {n_frames} frames of the "
            f"file{not_counted}. The first two must be at least 1 and the sum at most {n_frames}."
        )
    order = np.random.default_rng(seed).permutation(n_frames)
    parts = np.split(order[:end], [n_train, n_train + n_validation])
    return Split(*map(np.sort, parts))

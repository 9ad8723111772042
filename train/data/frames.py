"""Labelled structures in memory, in eV and Å, and their split into training and validation."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from ase.geometry import complete_cell, minkowski_reduce
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from lkm_calc.graph import edges_within
from lkm_calc.nn import MAX_NUMBER

LONE_BOX = 8.0
"""Distance in Å of the images of an atom beyond which it is alone in a box, as plane-wave codes
need it; no element's crystal has nearest neighbours farther apart than caesium's 5.3 Å."""


class DataError(ValueError):
    """A data file or its content cannot be used; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Structures of any sizes, stored flat: atoms of frame f are rows starts[f] : starts[f+1]."""

    numbers: NDArray[np.int64]
    """(atoms) atomic numbers."""
    positions: NDArray[np.float64]
    """(atoms, 3) in Å."""
    energies: NDArray[np.float64]
    """(frames) total energies in eV, or another property in its unit."""
    starts: NDArray[np.int64]
    """(frames + 1) first row of each frame, and the end."""
    forces: NDArray[np.float64] | None = None
    """(atoms, 3) in eV/Å; None where there are no labels for them, NaN for a frame without."""
    cells: NDArray[np.float64] | None = None
    """(frames, 3, 3) cell vectors as rows in Å; None where nothing is periodic."""
    pbc: NDArray[np.bool_] | None = None
    """(frames, 3) which directions repeat; None where nothing is periodic."""
    stress: NDArray[np.float64] | None = None
    """(frames, 3, 3) in eV/Å³; None where there are no labels for it, NaN for a frame without."""
    energy_unit: str = "eV"
    """Unit of ``energies``, which may be another property."""
    config_types: NDArray[np.character] | None = None
    """(frames) ``config_type`` of each frame, empty for a frame without; None where none has it."""

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
        """Flatten frames of one molecule: numbers (N), positions and forces (M, N, 3)."""
        n_frames, n_atoms = positions.shape[:2]
        return cls(
            numbers=np.tile(numbers, n_frames),
            positions=positions.reshape(-1, 3),
            forces=forces.reshape(-1, 3),
            energies=energies,
            starts=np.arange(n_frames + 1) * n_atoms,
        )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(frames) number of atoms of each frame."""
        return np.diff(self.starts)

    @property
    def isolated(self) -> NDArray[np.bool_]:
        """(frames) whether a frame is an isolated atom: one atom without images, or far from them.

        A crystal with one atom in its cell is none.
        """
        alone: NDArray[np.bool_] = self.sizes == 1
        if self.cells is not None and self.pbc is not None:
            for f in np.flatnonzero(alone & self.pbc.any(1)):
                repeats = minkowski_reduce(self.cells[f], self.pbc[f])[0][self.pbc[f]]
                alone[f] = np.linalg.norm(repeats, axis=1).min() >= LONE_BOX
        return alone

    @property
    def has_forces(self) -> NDArray[np.bool_]:
        """(frames) whether a frame has labels of forces, which are then not all NaN."""
        if self.forces is None:
            return np.zeros(len(self), bool)
        labelled = ~np.isnan(self.forces).all(1)
        return np.bincount(self.atom_frame, labelled, minlength=len(self)) > 0

    @property
    def labelled_forces(self) -> NDArray[np.float64] | None:
        """(labelled atoms, 3) the forces of frames that have them; None if there are none."""
        labelled = self.has_forces
        if self.forces is None or labelled.all():
            return self.forces
        return self.forces[labelled[self.atom_frame]] if labelled.any() else None

    @property
    def usable_stress(self) -> NDArray[np.float64] | None:
        """The stress labels, NaN for molecules, where codes write zeros; None if none is left."""
        if self.stress is None or self.pbc is None:
            return None
        stress = np.where(np.any(self.pbc, axis=1, keepdims=True)[:, None], self.stress, np.nan)
        return stress if np.isfinite(stress).all((1, 2)).any() else None

    @property
    def atom_frame(self) -> NDArray[np.int64]:
        """(atoms) the frame to which each atom belongs."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def select(self, indices: NDArray[np.int64]) -> "Frames":
        """Return the frames at these indices, in this order."""
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
    """Raise a DataError if the frames cannot be what they claim to be.

    Checks that every number is finite, that elements exist and, if asked, that energies and
    forces have the size of eV and eV/Å. With ``partial``, forces of a frame may all be NaN: it has
    no labels of them.
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
                f"{source}: {name} hold NaN or infinity in {len(bad)} frame(s), the first "
                f"{bad[:5].tolist()}. Remove these frames, or read the file again from its source."
            )
    _check_cells(frames, source)
    bad = np.flatnonzero(~np.isfinite(frames.energies))
    if len(bad):
        raise DataError(
            f"{source}: energies hold NaN or infinity in {len(bad)} frame(s), the first "
            f"{bad[:5].tolist()}. Remove these frames, or read the file again from its source."
        )
    strange = np.setdiff1d(frames.numbers, np.arange(1, MAX_NUMBER + 1))
    if len(strange):
        raise DataError(
            f"{source}: {strange[:5].tolist()} are not atomic numbers. They must be 1 (H) to 94 "
            "(Pu); check which array of the file holds them."
        )
    _check_distances(frames, source)
    forces = frames.labelled_forces
    if check_units and forces is not None and not frames.isolated[frames.has_forces].all():
        _check_magnitudes(frames, forces, source)


def _check_cells(frames: Frames, source: str) -> None:
    """Raise a DataError if a cell is not finite, or flat in the directions that repeat."""
    if frames.cells is None or frames.pbc is None:
        return
    bad = np.unique(np.argwhere(~np.isfinite(frames.cells))[:, 0])
    if len(bad):
        raise DataError(
            f"{source}: cells hold NaN or infinity in {len(bad)} frame(s), the first "
            f"{bad[:5].tolist()}. Remove these frames."
        )
    flat = [
        f
        for f, (cell, pbc) in enumerate(zip(frames.cells, frames.pbc, strict=True))
        if pbc.any() and np.linalg.matrix_rank(cell[pbc]) < pbc.sum()
    ]
    if flat:
        raise DataError(
            f"{source}: {len(flat)} frame(s), the first {flat[:5]}, repeat in directions whose "
            "cell vectors are zero or parallel. Set the cell, or pbc = False for molecules."
        )


MIN_DISTANCE = 0.3
"""Distance in Å below which two nuclei do not come; H–H bonds have 0.74 Å."""


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
                f"{source}: two atoms of frame {f} are {distances.min():.3g} Å apart; nuclei do "
                f"not come below {MIN_DISTANCE} Å. Remove the frame, or convert positions to Å."
            )


def _distances_of_images(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the short distances in Å of atoms and their images."""
    return edges_within(positions, MIN_DISTANCE, np.asarray(complete_cell(cell)), pbc)[1]


FORCE_RANGE = (0.01, 50.0)
"""Credible root-mean-square force component in eV/Å, from nearly relaxed to very hot."""
STIFFNESS_RANGE = (3.0, 300.0)
"""Credible mean force constant of a molecule in eV/Å²; the rMD17 molecules have 25 to 40."""
MIN_FRAMES_FOR_STIFFNESS = 20
COVALENT = (1, 6, 7, 8, 9)
"""Elements whose bonds are as stiff as that; soft metals and noble gases are not."""


def lowest_energies(frames: Frames) -> NDArray[np.float64]:
    """Return energies (frames) in eV below which no frame can lie.

    Thomas–Fermi: the total energy of an atom is about −20.9 Z^(7/3) eV, and not lower by a fifth.
    """
    bound: NDArray[np.float64] = np.add.reduceat(frames.numbers ** (7 / 3), frames.starts[:-1])
    return -1.2 * 20.9 * bound


def _check_magnitudes(frames: Frames, forces: NDArray[np.float64], source: str) -> None:
    """Raise a DataError if energies or forces are not credible in eV and eV/Å."""
    hint = (
        "The reader converts from the unit that the format prescribes (kcal/mol and kcal/mol/Å "
        "for MD17 and rMD17, eV and Å for what ASE reads unless data.energy_unit and "
        "data.length_unit say otherwise): convert the file to it. If the system really is like "
        "that, set data.check_units = false."
    )
    rms = float(np.sqrt(np.mean(forces**2)))
    low, high = FORCE_RANGE
    if not low <= rms <= high:
        raise DataError(
            f"{source}: the root-mean-square force component is {rms:.3g} eV/Å after conversion; "
            f"{low:g} to {high:g} is credible. {hint}"
        )
    bound = lowest_energies(frames)
    low_frames = np.flatnonzero(frames.energies < bound)
    if len(low_frames):
        f = low_frames[0]
        raise DataError(
            f"{source}: the energy of frame {f} is {frames.energies[f]:.6g} eV after conversion, "
            f"below the {bound[f]:.6g} eV that its electrons can have. {hint}"
        )
    chosen = frames.has_forces & ~frames.isolated
    if not chosen.all():
        frames = frames.select(np.flatnonzero(chosen))
    _check_stiffness(frames, rms, source, hint)


def _check_stiffness(frames: Frames, rms: float, source: str, hint: str) -> None:
    """Raise a DataError if energies and forces do not belong to one potential in one unit.

    In a harmonic potential at temperature T the mean square force is kT times the mean force
    constant, and the energy spreads by kT √(n/2) for n degrees of freedom. Both in the wrong unit
    by a factor s shift the constant by s, one of them by s² or 1/s.
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
            f"{source}: energies (spread {np.std(frames.energies):.3g} eV) and forces (rms "
            f"{rms:.3g} eV/Å) together mean a force constant of "
            f"{stiffness:.3g} eV/Å²; {low:g} to {high:g} is credible for a molecule, so one or "
            f"both are in another unit. {hint}"
        )


@dataclass(frozen=True)
class Split:
    """Which frames of a file train and which validate."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def random_split(
    n_frames: int, n_train: int, n_validation: int, seed: int, n_isolated: int = 0
) -> Split:
    """Draw disjoint training and validation frames.

    Args:
        n_frames: Of the file, without isolated atoms.
        n_train: For training.
        n_validation: For validation.
        seed: What the choice depends on.
        n_isolated: Isolated atoms of the file, to be told of in the error.

    Raises:
        DataError: Fewer frames than asked for, or none on either side.
    """
    not_counted = f" ({n_isolated} isolated atom(s) not counted)" if n_isolated else ""
    if n_train < 1 or n_validation < 1 or n_train + n_validation > n_frames:
        raise DataError(
            f"data.n_train = {n_train} and data.n_validation = {n_validation} do not fit the "
            f"{n_frames} frames of the file{not_counted}. Each must be at least 1 and their sum at "
            f"most {n_frames}."
        )
    order = np.random.default_rng(seed).permutation(n_frames)
    return Split(np.sort(order[:n_train]), np.sort(order[n_train : n_train + n_validation]))

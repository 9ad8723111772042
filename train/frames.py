"""Labelled structures in memory, in eV and Å, and their split into training and validation."""

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray


class DataError(ValueError):
    """A data file or its content cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Frames:
    """Structures of any sizes, stored flat: atoms of frame f are rows starts[f] : starts[f+1]."""

    numbers: NDArray[np.int64]
    """(atoms) atomic numbers."""
    positions: NDArray[np.float64]
    """(atoms, 3) in Å."""
    forces: NDArray[np.float64]
    """(atoms, 3) in eV/Å."""
    energies: NDArray[np.float64]
    """(frames) total energies in eV."""
    starts: NDArray[np.int64]
    """(frames + 1) first row of each frame, and the end."""

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

    def select(self, indices: NDArray[np.int64]) -> "Frames":
        """Return the frames at these indices, in this order."""
        rows = np.concatenate(
            [np.arange(self.starts[f], self.starts[f + 1]) for f in indices]
            or [np.empty(0, np.int64)]
        )
        return Frames(
            numbers=self.numbers[rows],
            positions=self.positions[rows],
            forces=self.forces[rows],
            energies=self.energies[indices],
            starts=np.concatenate([[0], np.cumsum(self.sizes[indices])]),
        )


def check_frames(frames: Frames, source: str) -> None:
    """Raise a DataError if the frames cannot be what they claim to be.

    Checks that every number is finite, that elements exist, and that energies and forces have
    the size of eV and eV/Å: the binding energy and the forces of a molecule bound both.
    """
    atom_frame = np.repeat(np.arange(len(frames)), frames.sizes)
    for name, values in (("positions", frames.positions), ("forces", frames.forces)):
        bad = np.unique(atom_frame[~np.isfinite(values).all(1)])
        if len(bad):
            raise DataError(
                f"{source}: {name} hold NaN or infinity in {len(bad)} frame(s), the first "
                f"{bad[:5].tolist()}. Remove these frames, or read the file again from its source."
            )
    bad = np.flatnonzero(~np.isfinite(frames.energies))
    if len(bad):
        raise DataError(
            f"{source}: energies hold NaN or infinity in {len(bad)} frame(s), the first "
            f"{bad[:5].tolist()}. Remove these frames, or read the file again from its source."
        )
    strange = np.setdiff1d(frames.numbers, np.arange(1, len(chemical_symbols)))
    if len(strange):
        raise DataError(
            f"{source}: {strange[:5].tolist()} are not atomic numbers. They must be 1 (H) to 94 "
            "(Pu); check which array of the file holds them."
        )
    _check_magnitudes(frames, source)


# A C–H stretch at 300 K bends a force to a few eV/Å; at 2000 K to a few tens. The spread of the
# energy follows from the temperature as well: (3N/2)^½ kT/2 or so, 0.2 eV for aspirin at 500 K.
FORCE_RANGE = (1e-3, 50.0)
"""Credible root-mean-square force component in eV/Å."""
SPREAD_PER_ATOM_RANGE = (1e-5, 3.0)
"""Credible standard deviation of the energy of one composition, in eV an atom."""
ENERGY_PER_ELECTRON_RANGE = (0.0, 120.0)
"""Credible −E per electron in eV: 13.6 for H, 34 for C, 100 for the heaviest all-electron atoms."""


def _check_magnitudes(frames: Frames, source: str) -> None:
    """Raise a DataError if energies or forces are not credible in eV and eV/Å."""
    hint = (
        "The reader converts from the unit that the format prescribes (kcal/mol and kcal/mol/Å "
        "for MD17 and rMD17); convert the file to it, or name its unit in the configuration."
    )
    rms = float(np.sqrt(np.mean(frames.forces**2)))
    low, high = FORCE_RANGE
    if not low <= rms <= high:
        raise DataError(
            f"{source}: the root-mean-square force component is {rms:.3g} eV/Å after conversion; "
            f"{low:g} to {high:g} is credible. {hint}"
        )
    electrons = np.add.reduceat(frames.numbers, frames.starts[:-1])
    per_electron = float(np.median(-frames.energies / electrons))
    low, high = ENERGY_PER_ELECTRON_RANGE
    if per_electron > high:
        raise DataError(
            f"{source}: the energy is {-per_electron:.4g} eV an electron after conversion; total "
            f"energies lie between 0 and {-high:g}. {hint}"
        )
    if len(frames) > 1 and len(np.unique(frames.sizes)) == 1:
        spread = float(np.std(frames.energies) / frames.sizes[0])
        low, high = SPREAD_PER_ATOM_RANGE
        if not low <= spread <= high:
            raise DataError(
                f"{source}: the energies spread by {spread:.3g} eV an atom after conversion; "
                f"{low:g} to {high:g} is credible. {hint}"
            )


@dataclass(frozen=True)
class Split:
    """Which frames of a file train and which validate."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def random_split(n_frames: int, n_train: int, n_validation: int, seed: int) -> Split:
    """Draw disjoint training and validation frames.

    Raises:
        DataError: Fewer frames than asked for, or none on either side.
    """
    if n_train < 1 or n_validation < 1 or n_train + n_validation > n_frames:
        raise DataError(
            f"data.n_train = {n_train} and data.n_validation = {n_validation} do not fit the "
            f"{n_frames} frames of the file. Each must be at least 1 and their sum at most "
            f"{n_frames}."
        )
    order = np.random.default_rng(seed).permutation(n_frames)
    return Split(np.sort(order[:n_train]), np.sort(order[n_train : n_train + n_validation]))

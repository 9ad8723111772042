"""Structures with vectors on their atoms as a data set of chemiscope."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ase
import numpy as np
from numpy.typing import NDArray

from .libraries import optional

ARROW = 3.0
"""Length in Å of the longest arrow of a structure; up to 2.5 times shorter for a round scale."""
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")
"""Colours of the sets of arrows."""
RADIUS = 0.06
"""Radius of an arrow in Å."""


@dataclass(frozen=True, kw_only=True)
class SceneFrame:
    """A structure, with values and vectors on its atoms."""

    atoms: ase.Atoms
    caption: str
    """One line about the structure."""
    values: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    """(atoms) values by name, with the unit in brackets; NaN if unknown."""
    vectors: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    """(atoms, 3) arrows by name; NaN if unknown."""
    focus: int = 0
    """Index of the atom that is marked."""

    def longest(self, name: str) -> float:
        """Return the length of the longest vector."""
        lengths = np.linalg.norm(np.nan_to_num(self.vectors[name]), axis=1)
        return float(lengths.max(initial=0.0))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Structures of which a page shows one at a time; all have the same values and vectors."""

    title: str
    frames: Sequence[SceneFrame]
    units: Mapping[str, str] = field(default_factory=dict)
    """Units of the vectors, by name."""
    trajectory: bool = False
    """The structures follow each other in time: orientation and scale of the arrows are kept."""

    def dataset(self) -> dict[str, Any]:
        """Return the data set for chemiscope.

        Raises:
            PageError: chemiscope is not installed.
        """
        chemiscope = optional("chemiscope")
        frames = [_plain(frame.atoms) for frame in self.frames]
        shapes = {
            name: self._arrows(name, colour)
            for name, colour in zip(self.units, COLOURS, strict=False)
        }
        names = list(self.frames[0].values)
        properties = {
            name.split(" [")[0]: {
                "target": "atom",
                "values": _rounded(np.concatenate([f.values[name] for f in self.frames])).tolist(),
                "units": name.partition(" [")[2].rstrip("]"),
            }
            for name in names
        }
        properties["structure"] = {"target": "structure", "values": [*range(len(frames))]}
        settings = {
            "bonds": True,
            "shape": ",".join(shapes),
            "unitCell": any(frame.pbc.any() for frame in frames),
            "keepOrientation": self.trajectory,
            "environments": {"activated": False},
        }
        found: dict[str, Any] = chemiscope.create_input(
            structures=frames,
            metadata={"name": self.title},
            properties=properties,
            shapes=shapes or None,
            environments=chemiscope.all_atomic_environments(frames, cutoff=3.0),
            settings={"target": "atom", "structure": [settings]},
        )
        return found

    def scales(self, name: str) -> list[float]:
        """Return the length of the arrows of a vector in Å per unit in each structure.

        These are round numbers.
        """
        longest = [frame.longest(name) for frame in self.frames]
        if self.trajectory:
            longest = [max(longest)] * len(longest)
        return [round_down(ARROW / length) if length > 0 else 1.0 for length in longest]

    def legends(self) -> list[list[str]]:
        """Return the meaning of each set of arrows, for each structure."""
        columns = [
            [f"{name}: 1 Å is {1 / scale:g} {unit}" for scale in self.scales(name)]
            for name, unit in self.units.items()
        ]
        return [[column[k] for column in columns] for k in range(len(self.frames))]

    def _arrows(self, name: str, colour: str) -> dict[str, Any]:
        pairs = zip(self.scales(name), self.frames, strict=True)
        scaled = np.concatenate([s * np.nan_to_num(frame.vectors[name]) for s, frame in pairs])
        shape = {"baseRadius": RADIUS, "headRadius": 2.2 * RADIUS, "headLength": 4 * RADIUS}
        return {
            "kind": "arrow",
            "parameters": {
                "global": shape | {"color": colour},
                "atom": [{"vector": vector} for vector in scaled.round(2).tolist()],
            },
        }


def round_down(value: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above a positive value."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(step for step in (1, 2, 5) if step * power <= value * (1 + 1e-9)) * power)


def _plain(atoms: ase.Atoms) -> ase.Atoms:
    """Return a structure without labels, with positions of three decimals."""
    return ase.Atoms(atoms.numbers, atoms.positions.round(3), cell=atoms.cell, pbc=atoms.pbc)


def _rounded(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return values with four significant digits."""
    return np.array([float(f"{value:.4g}") for value in values])

"""The files of an MD run, and how they go back to where a restart file was written."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.io
from ase.io.jsonio import decode, encode
from ase.io.trajectory import Trajectory

from .atomic import replacing

FORMAT_VERSION = 1
"""Version of the restart file that this code writes."""

STATE = (
    "files",
    "identity",
    "step",
    "atoms",
    "bond_lengths",
    "thermostat",
    "generator",
    "degrees_of_freedom",
    "conserved",
    "bound",
    "forces",
)
"""What a restart file holds beside its version."""


class RestartError(ValueError):
    """A run cannot be continued; the message says why."""


class LogRow(NamedTuple):
    """A line of the log."""

    step: int
    time_ps: float
    potential_eV: float  # noqa: N815
    kinetic_eV: float  # noqa: N815
    total_eV: float  # noqa: N815
    temperature_K: float  # noqa: N815
    drift_meV_per_atom: float | None  # noqa: N815
    """Of what the ensemble conserves, since the start; None where it conserves nothing."""


_HEAD = 48
"""Bytes at the start of a .traj file that say how many frames it holds and where they are listed;
all else is only appended, as in a text file."""


class MDRecord:
    """The folder of a run: trajectory, log.csv and restart.json.

    Args:
        folder: Made when the run begins.
        trajectory: File name in it; .traj, or .xyz or .extxyz for extended XYZ.

    Raises:
        ValueError: The trajectory has another suffix, or names another folder.
    """

    def __init__(self, folder: str | Path, trajectory: str) -> None:
        if Path(trajectory).name != trajectory or Path(trajectory).suffix not in (
            ".traj",
            ".xyz",
            ".extxyz",
        ):
            raise ValueError(
                f"The trajectory is {trajectory!r}; give a file name, without a folder, that ends "
                "in .traj, .xyz or .extxyz."
            )
        self.folder = Path(folder).absolute()  # the caller may change the working directory
        self.trajectory = self.folder / trajectory
        self.log = self.folder / "log.csv"
        self.restart = self.folder / "restart.json"

    def storable(self, atoms: ase.Atoms) -> ase.Atoms:
        """Return a copy without what the files of a run cannot hold, and warn of that.

        Those are entries of ``atoms.info`` that are no JSON, such as sets, paths and functions, and
        for extended XYZ arrays of complex numbers, or with more than a vector for each atom.
        """
        copy: ase.Atoms = atoms.copy()
        lost = [name for name, value in atoms.info.items() if not _is_json(value)]
        for name in lost:
            del copy.info[name]
        if self.trajectory.suffix != ".traj":
            for name, array in atoms.arrays.items():
                if array.ndim > 2 or array.dtype.kind == "c":
                    del copy.arrays[name]
                    lost.append(name)
        if lost:
            warnings.warn(
                f"{', '.join(map(str, lost))} of the structure cannot be written to the files of "
                "the run and is left out.",
                stacklevel=3,
            )
        return copy

    def begin(self) -> None:
        """Start empty files, in place of those of a run that was killed before it was saved.

        Raises:
            ValueError: There are files of those names that no run made.
        """
        head = ",".join(LogRow._fields)
        logged = self.log.read_text(encoding="utf-8") if self.log.exists() else None
        ours = logged is not None and (head + "\n").startswith(logged[: len(head) + 1])
        for path in (self.log, self.trajectory):
            if path.exists() and not ours:
                raise ValueError(
                    f"{path} is there and belongs to no run. Choose another folder or file name, "
                    "or move it away."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        # In this order: a trajectory without a log is somebody else's.
        self.log.write_text(head + "\n", encoding="utf-8")
        self.trajectory.unlink(missing_ok=True)

    def add_frame(self, atoms: ase.Atoms) -> None:
        """Append a frame with momenta, energy and forces to the trajectory."""
        if self.trajectory.suffix == ".traj":
            with Trajectory(self.trajectory, "a") as trajectory:
                trajectory.write(atoms)
        else:
            ase.io.write(self.trajectory, atoms, format="extxyz", append=True)

    def add_row(self, row: LogRow) -> None:
        """Append a line to the log, with all digits of the numbers."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(",".join("" if value is None else repr(value) for value in row) + "\n")

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the restart file, whole or not at all, with the lengths of the other files."""
        files = {path.name: _mark(path) for path in (self.trajectory, self.log)}
        content = {"format_version": FORMAT_VERSION, "files": files, **state}
        with replacing(self.restart) as temporary:
            temporary.write_text(encode(content) + "\n", encoding="utf-8")

    def load(self) -> dict[str, Any]:
        """Return the saved state.

        Raises:
            RestartError: The file is damaged or of a newer format.
        """
        content: dict[str, Any]
        try:
            content = decode(self.restart.read_text(encoding="utf-8"), always_array=False)
            version = content["format_version"]
            if version == FORMAT_VERSION:
                content = {name: content[name] for name in STATE}
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise RestartError(
                f"{self.restart} is not a readable restart file ({type(error).__name__}: {error}). "
                "Remove it to start the run again, or choose another folder."
            ) from error
        if version != FORMAT_VERSION:
            raise RestartError(
                f"{self.restart} has format {version}; this lkm-calc reads {FORMAT_VERSION}. "
                "Update it: pip install -U lkm-calc."
            )
        return content

    def rewind(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Drop what was written after the restart file.

        Raises:
            RestartError: A file is missing or has lost what it had then.
        """
        for name, mark in files.items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else 0
            if size < mark["size"]:
                raise RestartError(
                    f"{path} has {size} bytes and had {mark['size']} when the restart file was "
                    "written. Put it back, or start again in another folder."
                )
        for name, mark in files.items():
            path = self.folder / name
            if mark["size"] == 0:
                path.unlink(missing_ok=True)
                continue
            with path.open("rb+") as file:
                file.truncate(mark["size"])
                file.write(bytes.fromhex(mark["head"]))


def _is_json(value: Any) -> bool:
    """Tell whether ASE can write a value as JSON."""
    try:
        encode(value)
    except (TypeError, ValueError):
        return False
    return True


def _mark(path: Path) -> dict[str, Any]:
    """Return length and first bytes of a file, once it is on the disk."""
    if not path.exists():
        return {"size": 0, "head": ""}
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return {"size": path.stat().st_size, "head": file.read(_HEAD).hex()}


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Describe each value of a run that is not as it was."""
    now = json.loads(json.dumps(wanted))
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    return [f"{name} was {saved.get(name)!r}, is {now.get(name)!r}" for name in names]

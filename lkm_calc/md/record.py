"""The files of an MD run, and how they are truncated to the state of the restart file."""

import json
import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import ase
import ase.io
import numpy as np
from ase.io.jsonio import decode, encode
from ase.io.trajectory import Trajectory

from ..files import checksum_of, expanded, replacing
from .extrapolation import ExtrapolationLog

logger = logging.getLogger("lkm_calc")

FORMAT_VERSION = 2
"""Version of restart files written by this code. Version 2 added the checksum."""
_CHECKSUM = "sha256"

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
"""Entries of a restart file apart from its version."""


class RestartError(ValueError):
    """A run cannot be resumed; the message says why."""


class LogRow(NamedTuple):
    """A line of the log."""

    step: int
    time_ps: float
    potential_eV: float  # noqa: N815
    kinetic_eV: float  # noqa: N815
    total_eV: float  # noqa: N815
    temperature_K: float  # noqa: N815
    drift_meV_per_atom: float | None  # noqa: N815
    """Of the conserved quantity, since the start; None if there is none."""
    pressure_bar: float | None = None
    """Including the kinetic contribution; None if the calculator has no stress."""
    volume_A3: float | None = None  # noqa: N815
    """Of the cell. Pressure and volume are logged only for structures periodic in 3 directions."""


_CELL = ("pressure_bar", "volume_A3")


_HEAD = 48
"""Bytes of the header of a .traj file, with the number of frames and the position of their index;
everything else is append-only, as in a text file."""
_HEX = re.compile(f"([0-9a-f]{{2}}){{0,{_HEAD}}}")


class MDRecord:
    """The folder of a run: trajectory, log.csv, restart.json, and with a guard extrapolation.csv.

    Args:
        folder: Created when the run begins.
        trajectory: File name in it; .traj, or .xyz or .extxyz for extended XYZ.

    Raises:
        ValueError: The trajectory has a different suffix or contains a folder.
    """

    def __init__(self, folder: str | Path, trajectory: str) -> None:
        if Path(trajectory).name != trajectory or Path(trajectory).suffix not in (
            ".traj",
            ".xyz",
            ".extxyz",
        ):
            raise ValueError(
                f"trajectory is {trajectory!r}; it must be a file name without a folder that ends "
                "in .traj, .xyz or .extxyz."
            )
        # The caller may change the working directory.
        self.folder = expanded(folder).absolute()
        self.trajectory = self.folder / trajectory
        self.log = self.folder / "log.csv"
        self.restart = self.folder / "restart.json"
        self.extrapolation = ExtrapolationLog(self.folder / "extrapolation.csv")

    def storable(self, atoms: ase.Atoms) -> ase.Atoms:
        """Return a copy without data that cannot be stored in the files of a run, with a warning.

        These are entries of ``atoms.info`` that JSON cannot represent, such as sets, paths and
        functions, and for extended XYZ complex arrays and arrays with more than two dimensions.
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
                "the run and will be left out.",
                stacklevel=3,
            )
        return copy

    def begin(self, bulk: bool = False, guarded: bool = False) -> None:
        """Create empty files, replacing those of a run that was killed before its first save.

        Args:
            bulk: Also log pressure and volume.
            guarded: Also log the steps outside the training distribution.

        Raises:
            ValueError: Files of those names exist that were not written by a run.
        """
        head = ",".join(name for name in LogRow._fields if bulk or name not in _CELL)
        logged = self.log.read_text(encoding="utf-8") if self.log.exists() else None
        ours = logged is not None and (head + "\n").startswith(logged[: len(head) + 1])
        for path in (self.log, self.trajectory, self.extrapolation.path):
            if path.exists() and not ours:
                raise ValueError(
                    f"{path} exists and does not belong to a run. Choose another folder or file "
                    "name, or move the file."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        # In this order, because a trajectory without a log is taken as not ours.
        self.log.write_text(head + "\n", encoding="utf-8")
        self.trajectory.unlink(missing_ok=True)
        self.extrapolation.path.unlink(missing_ok=True)
        if guarded:
            self.extrapolation.begin()

    def add_frame(self, atoms: ase.Atoms) -> None:
        """Append a frame with momenta, energy and forces to the trajectory."""
        if self.trajectory.suffix == ".traj":
            with Trajectory(self.trajectory, "a") as trajectory:
                trajectory.write(atoms)
        else:
            ase.io.write(self.trajectory, atoms, format="extxyz", append=True)

    def add_row(self, row: LogRow) -> None:
        """Append a line to the existing columns of the log, at full precision."""
        with self.log.open("r+", encoding="utf-8") as file:
            values = [getattr(row, name) for name in file.readline().strip().split(",")]
            file.seek(0, os.SEEK_END)
            file.write(",".join("" if value is None else repr(value) for value in values) + "\n")

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the restart file atomically, including the lengths of the other files.

        Its first entry is a checksum of the others.
        """
        files = {path.name: _mark(path) for path in (self.trajectory, self.log)}
        content = {"format_version": FORMAT_VERSION, "files": files, **state}
        text = encode(content)
        first = json.dumps({_CHECKSUM: checksum_of(json.loads(text), {})})
        with replacing(self.restart) as temporary:
            temporary.write_text(f"{first[:-1]}, {text[1:]}\n", encoding="utf-8")

    def load(self) -> dict[str, Any]:
        """Return the saved state.

        Raises:
            RestartError: The file is damaged or of a newer format.
        """
        text = self._checked_text()
        try:
            saved = decode(text, always_array=False)
            content = {name: saved[name] for name in STATE} | {
                "first_volume": saved.get("first_volume")  # missing from older files
            }
            np.random.default_rng().bit_generator.state = content["generator"]
            json.dumps(content["identity"])
        except Exception as error:  # damaged files without a checksum raise many kinds of errors
            raise self._unreadable(f"{type(error).__name__}: {error}") from error
        problem = _find_damage(content, {self.trajectory.name, self.log.name})
        if problem:
            raise self._unreadable(problem)
        return content

    def _checked_text(self) -> str:
        """Return the text of the restart file after checking its version and checksum."""
        try:
            text = self.restart.read_text(encoding="utf-8")
            values = json.loads(text)
            version, written = values["format_version"], values.pop(_CHECKSUM, None)
            found = checksum_of(values, {})
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise self._unreadable(f"{type(error).__name__}: {error}") from error
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise RestartError(
                f"{self.restart} has format {version!r}; this lkm-calc reads up to "
                f"{FORMAT_VERSION}. Update it: pip install -U lkm-calc."
            )
        if written is None and version == 1:
            logger.warning(
                "%s was written before restart files had a checksum; damage cannot be detected.",
                self.restart,
            )
        elif written != found:
            raise RestartError(
                f"{self.restart} does not match its checksum: it was damaged or edited. Restore a "
                "copy, remove it to start the run again, or choose another folder."
            )
        return text

    def _unreadable(self, reason: str) -> RestartError:
        """Return the error for an unreadable restart file."""
        return RestartError(
            f"{self.restart} is not a readable restart file ({reason}). Remove it to start the run "
            "again, or choose another folder."
        )

    def rewind(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Remove what was written after the restart file.

        Raises:
            RestartError: A file is missing or shorter than when the restart file was written.
        """
        for name, mark in files.items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else 0
            if size < mark["size"]:
                raise RestartError(
                    f"{path} has {size} bytes but had {mark['size']} when the restart file was "
                    "written. Restore it, or start again in another folder."
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
    """Return whether ASE can write a value as JSON."""
    try:
        encode(value)
    except (TypeError, ValueError):
        return False
    return True


def _find_damage(state: Mapping[str, Any], names: set[str]) -> str:
    """Return what is wrong with a saved state, or an empty string.

    Args:
        state: Its entries.
        names: Names of the files whose lengths it must contain.
    """
    kinds: dict[str, Any] = {
        "files": dict,
        "identity": dict,
        "step": int,
        "atoms": ase.Atoms,
        "bond_lengths": list,
        "thermostat": dict,
        "generator": dict,
        "degrees_of_freedom": int,
        "conserved": (float, NoneType),
        "bound": list,
        "forces": np.ndarray,
    }
    for name, kind in kinds.items():
        if not isinstance(state[name], kind):
            return f"{name} is {state[name]!r}"
    if state["files"].keys() != names or not all(map(_is_mark, state["files"].values())):
        return f"files are {state['files']!r}"
    moving, atoms = state["atoms"], len(state["atoms"])
    if len(state["bond_lengths"]) != len(moving.constraints):
        return f"bond_lengths is {state['bond_lengths']!r}"
    if state["forces"].shape != (atoms, 3):
        return f"forces are of shape {state['forces'].shape}"
    for array in (state["forces"], moving.positions, moving.get_momenta(), moving.cell.array):
        if not np.isfinite(array).all():
            return "a position, a momentum, a force or the cell is not finite"
    if not all(type(i) is int and 0 <= i < atoms for i in state["bound"]):
        return f"bound is {state['bound']!r}"
    return ""


def _is_mark(mark: Any) -> bool:
    """Return whether an object could have been returned by :func:`_mark`."""
    if not (isinstance(mark, dict) and mark.keys() == {"size", "head"}):
        return False
    size, head = mark["size"], mark["head"]
    whole = type(size) is int and size >= 0
    return whole and isinstance(head, str) and bool(_HEX.fullmatch(head))


def _mark(path: Path) -> dict[str, Any]:
    """Flush a file to disk and return its length and first bytes."""
    if not path.exists():
        return {"size": 0, "head": ""}
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return {"size": path.stat().st_size, "head": file.read(_HEAD).hex()}


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Describe each value of a run that has changed."""
    now = json.loads(json.dumps(wanted))
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    return [f"{name} was {saved.get(name)!r}, is {now.get(name)!r}" for name in names]

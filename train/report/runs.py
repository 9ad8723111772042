"""Reading of a run directory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lkm_calc import EnergyModel
from lkm_calc.files import expanded
from lkm_calc.potential import read_header

from ..config import Config, ConfigError, config_from_table, told_of_old
from ..data import DataError, Frames, Split
from ..formats import read_data
from .calibration import own_split
from .writing import checksum


class Held(NamedTuple):
    """Frames that were not trained on."""

    name: str
    """Name of the set, such as "test"."""
    frames: Frames
    numbers: NDArray[np.int64]
    """(frames) their numbers in the file."""

    @classmethod
    def from_file(cls, name: str, frames: Frames) -> "Held":
        """Return the frames of a file that are not isolated atoms."""
        rows = np.flatnonzero(~frames.isolated)
        return cls(name, frames.select(rows), rows)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with a model."""

    directory: Path
    config: Config
    rows: list[dict[str, Any]]
    """Rows of metrics.jsonl."""
    header: Mapping[str, Any]
    """Header of model.safetensors."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.directory.resolve().name

    @property
    def model(self) -> Path:
        """The file of the best model."""
        return self.directory / "model.safetensors"


def read_run(directory: str | Path) -> Run:
    """Read the directory of a run with a model, which need not be finished.

    Raises:
        ConfigError: It is not the directory of a run, has no model yet, or its configuration is
            not valid.
        ModelFileError: The model cannot be read.
    """
    directory = expanded(directory)
    config, model = directory / "config.json", directory / "model.safetensors"
    if not directory.is_dir():
        raise ConfigError(
            f"{directory} is not a folder. Specify the run.directory of a run, which contains "
            "config.json."
        )
    if not config.is_file():
        raise ConfigError(
            f"{directory} is not the directory of a run: it does not contain config.json. Specify "
            f"the run.directory of a run{_runs_below(directory)}."
        )
    if not model.is_file():
        raise ConfigError(
            f"{directory} has no model.safetensors yet: the run was stopped before its first "
            "validation. Continue it with lkm-train fit."
        )
    try:
        table = told_of_old(json.loads(config.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{config} is not valid JSON: {error}.") from error
    rows = read_rows(directory / "metrics.jsonl")
    found = config_from_table(table)
    return Run(directory=directory, config=found, rows=rows, header=read_header(model))


def _runs_below(directory: Path) -> str:
    """Return a hint that lists runs in a folder, such as the members of a committee."""
    found = sorted(path.parent.name for path in directory.glob("*/config.json"))
    return f", for example {directory / found[0]}" if found else ""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, without a last line that was truncated by a crash."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def held_frames(run: Run, model: EnergyModel, data: str = "") -> Held:
    """Return the test frames of a run, or its validation frames if it has no test set.

    Args:
        run: The run.
        model: Its model.
        data: A file to use instead of that of the run. If the validation or test frames were
            drawn from it, they are returned.

    Raises:
        DataError: The file is missing, has changed or cannot be read.
    """
    options = run.config.data
    if data:
        frames = read_data(data, options)
        split = own_split(model, frames, data)
        if split is not None and not len(split.validation):
            raise DataError(
                f"{data} contains the training frames. Specify the validation frames of the run, "
                "or other labelled frames."
            )
        if split is not None:
            return _drawn(frames, split)
        return Held.from_file(Path(data).name, frames)
    if options.test:
        return Held.from_file("test", _read_own(run, "test", options.test))
    name, path = (
        ("validation", options.validation) if options.validation else ("train", options.train)
    )
    frames = _read_own(run, name, path)
    split = own_split(model, frames, path)
    if split is None:  # the checksum was compared before, so the file is being written
        raise DataError(f"{path} changed while it was read. Repeat the command.")
    return _drawn(frames, split)


def _drawn(frames: Frames, split: Split) -> Held:
    """Return the test frames that were drawn from a file, or the validation frames."""
    if len(split.test):
        return Held("test", frames.select(split.test), split.test)
    return Held("validation", frames.select(split.validation), split.validation)


def _read_own(run: Run, name: str, path: str) -> Frames:
    """Read a data file of the run, and raise a DataError if it is not the same file."""
    if not expanded(path).is_file():
        raise DataError(
            f"data.{name} of the run, {path}, does not exist (relative paths start at the current "
            "folder). Specify its new path, or other labelled frames, with --data."
        )
    expected = run.header["provenance"].get("files", {}).get(name, {}).get("sha256")
    found = checksum(path)
    if expected is not None and found != expected:
        raise DataError(
            f"data.{name} of the run, {path}, has changed: its SHA-256 is {found[:16]}…, not "
            f"{expected[:16]}…. Restore the file, or specify the frames to evaluate with --data."
        )
    return read_data(path, run.config.data)

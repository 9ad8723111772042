"""The page of a run: errors with structures, learning curves and settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from lkm_calc import EnergyModel
from lkm_calc.page import (
    Block,
    Code,
    Page,
    Plot,
    Scene,
    SceneFrame,
    Table,
    check_packages,
    write_page,
)
from lkm_calc.runtime import own_settings
from lkm_calc.uncertainty import calibration_of

from ..config import Config, to_table
from ..data import Frames, GraphFrames
from .card import error_rows, facts
from .evaluate import Predictions, errors_of
from .figures import energy_parity, expected_errors, force_parity, learning_curves
from .runs import Held, Run

WORST = 20
"""Number of frames in the table of the largest errors."""
MAX_FRAMES = 1000
"""Maximum number of frames with their structures on a page."""
MAX_ATOMS = 21_000
"""Maximum number of atoms on a page, for a size of at most 5 MB."""
ARROWS = {"reference force": "eV/Å", "force error": "meV/Å"}
"""Vectors on the atoms and their units."""


@dataclass(frozen=True)
class Measured:
    """Held-out frames with the predictions of a model."""

    model: EnergyModel
    held: Held
    data: GraphFrames
    """The same frames for the model."""
    predictions: Predictions
    batch_size: int

    @property
    def frames(self) -> Frames:
        """The frames."""
        return self.held.frames

    @own_settings
    def expected_errors(self) -> NDArray[np.float64] | None:
        """Return the expected force errors (atoms) in eV/Å; None without a calibration."""
        model, calibration = self.model, calibration_of(self.model)
        if calibration is None or model.latent is None:
            return None
        latent, parts = model.latent.to(model.device), []
        for indices in self.data.in_order(self.batch_size):
            graph = self.data.batch(indices).graph
            numbers = graph.numbers.cpu().numpy()
            with torch.no_grad():
                distance = latent.distance(numbers, model(graph).embeddings)
            parts.append(calibration.force_errors(numbers, distance.cpu().numpy()))
        return np.concatenate(parts)

    def force_errors(self) -> NDArray[np.float64] | None:
        """Return predicted minus reference (atoms, 3) in eV/Å; NaN for frames without labels.

        None if no frame has labels.
        """
        pair = self.predictions.forces
        if pair is None or self.frames.forces is None:
            return None
        errors = np.full(self.frames.forces.shape, np.nan)
        errors[np.isfinite(self.frames.forces).all(1)] = pair.difference.numpy()
        return errors

    def ranking(self) -> NDArray[np.int64]:
        """Return the frames from the worst, by the largest force error of an atom.

        Frames without forces follow, by energy error.
        """
        energy = np.abs(self.predictions.energies.difference.numpy())
        errors = self.force_errors()
        if errors is None:
            return np.argsort(-energy, kind="stable")
        norms = np.nan_to_num(np.linalg.norm(errors, axis=1), nan=-1.0)
        return np.lexsort((-energy, -np.maximum.reduceat(norms, self.frames.starts[:-1])))


def write_run_page(run: Run, found: Measured, path: Path) -> None:
    """Write the page of a run, atomically.

    Raises:
        PageError: plotly or chemiscope is not installed.
    """
    check_packages()
    write_page(path, run_page(run, found))


def run_page(run: Run, found: Measured) -> Page:
    """Return the page of a run."""
    training = run.header["provenance"]
    shown = _Shown(found, training.get("energy_unit", "eV"))
    names, errors = error_rows(training)
    settings = Table(
        title="Settings",
        header=("option", "value", "default"),
        rows=_settings(run.config),
        note="All options that differ from their defaults; config.json contains all of them.",
    )
    files = [
        (f"{name} data", f"{file['name']}, SHA-256 {file['sha256']}")
        for name, file in training.get("files", {}).items()
    ]
    return Page(
        title=run.name,
        lead=_lead(run, found),
        beside=shown.blocks(),
        scene=shown.scene(),
        below=[
            *learning_curves(run.rows),
            Table(title="Errors", header=("", *(f"{n} frames" for n in names)), rows=errors),
            Table(title="Model and data", header=("", ""), rows=[*facts(run.header), *files]),
            settings,
            Code(
                title="Repeat",
                text=repeat_command(training),
                note="In the directory of the run, with its data.",
            ),
        ],
    )


def repeat_command(training: Mapping[str, Any]) -> str:
    """Return the command that repeats a run, given its provenance."""
    files = training["files"]
    names = [name for name in ("train", "validation") if name in files]
    data = " ".join(f"--data.{name} {files[name]['name']}" for name in names)
    return f"lkm-train fit config.json {data}"


def _lead(run: Run, found: Measured) -> list[str]:
    errors = errors_of(found.predictions)
    unit = run.header["provenance"].get("energy_unit", "eV")
    unit = "meV" if unit == "eV" else f"10⁻³ {unit}"
    text = (
        f"{len(found.frames)} {found.held.name} frames: energy MAE {errors.energy_mae:.2f} {unit}"
    )
    if errors.force_mae is not None:
        text += f", force MAE {errors.force_mae:.2f} meV/Å"
    lines = [
        text + ".",
        "Click a point or a row to show the structure. Drag to zoom into a plot; double-click to "
        "reset.",
    ]
    epochs = run.config.optimiser.epochs
    if (
        run.rows
        and run.rows[-1]["epoch"] < epochs
        and "calibration" not in run.header["provenance"]
    ):
        lines.append(f"The run is not finished: {run.rows[-1]['epoch']} of {epochs} epochs.")
    return lines


def _settings(config: Config) -> list[tuple[str, str, str]]:
    """Return option, value and default of all options that differ from their defaults."""
    table, defaults = to_table(config), to_table(Config())
    return [
        (f"{section}.{name}", _shown_value(value), _shown_value(defaults[section][name]))
        for section, values in table.items()
        for name, value in values.items()
        if value != defaults[section][name] and (section, name) != ("run", "directory")
    ]


def _shown_value(value: Any) -> str:
    """Return an option; of paths, only the file name, because paths are private."""
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return Path(value).name
    return "" if value == "" else str(value)


class _Shown:
    """The frames on a page, from the worst: all, or the worst and evenly spaced others.

    Args:
        found: All frames.
        unit: Unit of the energies.
    """

    def __init__(self, found: Measured, unit: str) -> None:
        self.found, self.unit = found, unit
        self.total = len(found.frames)
        ranking = found.ranking()
        size = max(1.0, float(found.frames.sizes.mean()))
        limit = max(WORST, min(MAX_FRAMES, int(MAX_ATOMS / size)))
        if self.total > limit:
            rest = np.linspace(WORST, self.total - 1, limit - WORST).round().astype(int)
            chosen = np.concatenate([np.arange(WORST), np.unique(rest)])
            self.ranks, ranking = chosen, ranking[chosen]
        else:
            self.ranks = np.arange(self.total)
        self.chosen = ranking
        self.frames = found.frames.select(ranking)
        self.numbers = found.held.numbers[ranking]
        rows = np.concatenate(
            [np.arange(found.frames.starts[f], found.frames.starts[f + 1]) for f in ranking]
        )
        self.energy_error = found.predictions.energies.difference.numpy()[ranking]
        errors = found.force_errors()
        self.errors = None if errors is None else errors[rows]
        expected = found.expected_errors()
        self.expected = None if expected is None else expected[rows]
        self.norms = None if self.errors is None else np.linalg.norm(self.errors, axis=1)

    def blocks(self) -> list[Block]:
        """Return the plots of errors and the table of the worst frames."""
        return [*self._plots(), self._worst()]

    def _plots(self) -> list[Plot]:
        predictions, errors = self.found.predictions, errors_of(self.found.predictions)
        reference = (predictions.energies.labels - predictions.references).numpy()[self.chosen]
        links = [[k, -1, int(number)] for k, number in enumerate(self.numbers)]
        mae = f"{errors.energy_mae / 1000:.3g} {self.unit}"
        if self.unit == "eV":
            mae = f"{errors.energy_mae:.2f} meV"
        plots = [
            energy_parity(f"Energies: MAE {mae}", self.unit, reference, self.energy_error, links)
        ]
        if self.errors is None or self.norms is None or self.frames.forces is None:
            return plots
        starts, frame = self.frames.starts, self.frames.atom_frame
        atoms = [
            [int(f), int(row - starts[f]), int(self.numbers[f])] for row, f in enumerate(frame)
        ]
        rows = np.flatnonzero(np.isfinite(self.norms))
        numbers, of_atoms = self.frames.numbers[rows], [atoms[row] for row in rows]
        plots.append(
            force_parity(
                f"Forces: MAE {errors.force_mae:.2f} meV/Å",
                numbers,
                self.frames.forces[rows],
                self.errors[rows],
                of_atoms,
            )
        )
        if self.expected is not None:
            plots.append(expected_errors(numbers, self.expected[rows], self.norms[rows], of_atoms))
        return plots

    def _worst(self) -> Table:
        header = ["", "frame", "energy error", "largest force error", "on atom", "expected there"]
        count = min(WORST, self.total)
        rows = [self._row(k) for k in range(count)]
        columns = 3 if self.errors is None else 5 if self.expected is None else 6
        note = "By energy error."
        if self.errors is not None:
            note = "By the largest force error of an atom."
        if len(self.numbers) < self.total:
            note += (
                f" The page shows {len(self.numbers)} of {self.total} frames: these and others "
                "evenly spaced in this order."
            )
        return Table(
            title=f"The worst {count} frames",
            header=header[:columns],
            rows=[row[:columns] for row in rows],
            structures=range(count),
            note=note,
        )

    def _row(self, k: int) -> list[str]:
        row = [str(self.ranks[k] + 1), str(self.numbers[k]), self._energy(k)]
        worst = self._worst_atom(k)
        if worst is None or self.norms is None:
            return [*row, "", "", ""]
        first = self.frames.starts[k]
        expected = "" if self.expected is None else f"{1000 * self.expected[worst]:.1f} meV/Å"
        symbol = chemical_symbols[self.frames.numbers[worst]]
        error = f"{1000 * self.norms[worst]:.1f} meV/Å"
        return [*row, error, f"{symbol} {worst - first}", expected]

    def _energy(self, k: int) -> str:
        error = self.energy_error[k]
        return f"{1000 * error:+.1f} meV" if self.unit == "eV" else f"{error:+.3g} {self.unit}"

    def _worst_atom(self, k: int) -> int | None:
        """Return the row of the atom of a frame with the largest force error, if known."""
        if self.norms is None:
            return None
        first, last = self.frames.starts[k], self.frames.starts[k + 1]
        norms = self.norms[first:last]
        return None if np.isnan(norms).any() else int(first + norms.argmax())

    def scene(self) -> Scene:
        """Return the structures with forces and force errors."""
        frames = self.frames
        units = {} if self.errors is None else ARROWS
        return Scene(
            title=self.found.held.name,
            frames=[self._scene_frame(k) for k in range(len(frames))],
            units=units,
        )

    def _scene_frame(self, k: int) -> SceneFrame:
        frames = self.frames
        rows = slice(frames.starts[k], frames.starts[k + 1])
        values, vectors = {}, {}
        if self.norms is not None and self.errors is not None and frames.forces is not None:
            values["force error [meV/Å]"] = 1000 * self.norms[rows]
            vectors = dict(
                zip(ARROWS, (frames.forces[rows], 1000 * self.errors[rows]), strict=True)
            )
        if self.expected is not None:
            values["expected error [meV/Å]"] = 1000 * self.expected[rows]
        worst = self._worst_atom(k)
        return SceneFrame(
            atoms=frames.atoms(k),
            caption=self._caption(k),
            values=values,
            vectors=vectors,
            focus=0 if worst is None else int(worst - frames.starts[k]),
        )

    def _caption(self, k: int) -> str:
        rank = f"{self.ranks[k] + 1} of {self.total} from the worst"
        kind = self.frames.config_types
        of_type = f", config_type {kind[k]}" if kind is not None and kind[k] else ""
        text = f"Frame {self.numbers[k]} ({rank}{of_type}): energy error {self._energy(k)}"
        _, _, _, error, atom, expected = self._row(k)
        if error:
            text += f", largest force error {error} on {atom}"
        return text + (f", where {expected} is expected." if expected else ".")

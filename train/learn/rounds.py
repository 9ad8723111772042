"""Rounds of active learning."""

import dataclasses
import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from lkm_calc import LKMCalculator
from lkm_calc.files import expanded, read_structures
from lkm_calc.md import MDError, MDSettings, Simulation
from lkm_calc.runtime import only_process, stop_signals

from ..config import Config, ConfigError, DataConfig, PretrainingConfig
from ..data import DataError, Frames
from ..formats import read_hdf5, write_hdf5
from ..report import write_json
from ..sampling import sample_frames
from .labels import check_labels_source, is_command, label_structures
from .training import calibrated_copy, compared, trained_model

logger = logging.getLogger("lkm_train")

HOTTER = 1.5
"""Default temperature of the first structures relative to that of the simulations."""
SPACING = 100
"""Femtoseconds between the first structures."""
CHUNK = 4000
"""Steps of a simulation between checks of the number of structures outside."""
SURPLUS = 2
"""A simulation ends when it has collected this many times the structures that are labelled."""
HELD_OUT = 5
"""One in so many of the first frames is a validation frame; of later ones, every second."""


@dataclass(frozen=True)
class LearnSettings:
    """Settings of active learning."""

    labels: str
    """Calculator or command for the labels, see :func:`train.learn.label_structures`."""
    sampler: str = ""
    """Calculator of the dynamics from which the first structures are taken; that of the labels if
    empty."""
    temperature: float = 500.0
    """Temperature of the simulations in K."""
    picoseconds: float = 20.0
    """Length of a simulation; the last one is within the training distribution for all of it."""
    timestep: float = 0.5
    """Time step in fs."""
    first: int = 100
    """Number of structures that are labelled first."""
    first_temperature: float | None = None
    """Temperature of the dynamics they are from in K; 1.5 times ``temperature`` if None, so that
    they contain what simulations rarely reach."""
    per_round: int = 50
    """Maximum number of structures that are labelled in a round."""
    rounds: int = 10
    """Maximum number of rounds."""
    jobs: int = 1
    """Number of processes that label."""

    def check(self) -> None:
        """Raise a ConfigError for invalid values."""
        positive = ("temperature", "picoseconds", "timestep", "per_round", "rounds", "jobs")
        for name in (*positive, "first_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ConfigError(f"{name} is {value}; it must be positive.")
        if self.first < 20:
            raise ConfigError(f"first is {self.first}; a training needs at least 20 structures.")
        if is_command(self.labels) and not self.sampler:
            raise ConfigError(
                "Labels from a command need a calculator for the first structures: set --sample, "
                "for example to gfn2-xtb."
            )
        check_labels_source(self.labels)


@dataclass(frozen=True)
class Round:
    """What a round did."""

    number: int
    """Counted from 1."""
    frames: int
    """Number of labelled frames, of training and of validation."""
    force_mae: float
    """Error of forces on the validation frames in meV/Å."""
    picoseconds: float
    """Length of its simulation."""
    outside: int
    """Number of distinct structures outside the training distribution."""
    labelled: int
    """Number of new labelled frames; if few structures were outside, some are of the trajectory."""
    new_force_mae: float | None = None
    """Error of forces on these in meV/Å, independent of the training."""
    finished: bool = False
    """Whether the simulation was within the training distribution and the model reliable."""
    failure: str = ""
    """Why the simulation ended early, if it did."""


class Simulated(NamedTuple):
    """A simulation of a round."""

    outside: list[Atoms]
    """Distinct structures outside the training distribution."""
    visited: list[Atoms]
    """Frames of the trajectory, at equal intervals; none if it failed."""
    picoseconds: float
    failure: str


def learn(
    structure: Atoms, settings: LearnSettings, config: Config, directory: str | Path
) -> list[Round] | None:
    """Label, train and simulate in rounds until a simulation stays within the training set.

    In every round a model is trained on all labels so far, starting from the model of the round
    before, and simulates the structure with the guard of
    :class:`~lkm_calc.uncertainty.Guard`. Structures outside the training distribution are labelled
    and added, every second one to the validation frames: these calibrate the guard, so that it
    passes what the model has been found to predict well. If the model was right on all of them,
    all become validation frames, and the next round simulates with the same model. The last model
    is ``model.safetensors`` in the directory, all labelled frames are ``frames.h5``. An interrupted
    call continues with the step that was interrupted.

    Args:
        structure: Structure from which dynamics start.
        settings: Labels, simulations and rounds.
        config: Options of the trainings; files and directories are set here.
        directory: Folder of all files.

    Returns:
        The rounds, or None if stopped by SIGINT or SIGTERM. If the last one is not finished,
        ``settings.rounds`` was too small.

    Raises:
        ConfigError: Settings are invalid, the folder was written with other settings, or the
            configuration chooses frames.
        DataError: Labels failed for all structures of a round.
    """
    settings.check()
    _check_config(config)
    folder = expanded(directory)
    with only_process(folder):
        _note_settings(folder, settings, config, structure)
        frames = _first(structure, settings, config, folder)
        if frames is None:
            return None
        held_out = np.arange(len(frames)) % HELD_OUT == HELD_OUT - 1
        rounds: list[Round] = []
        trained: Path | None = None
        right, batch_size = False, config.run.eval_batch_size
        while True:
            number = len(rounds) + 1
            place = folder / f"round-{number}"
            if not right:
                trained = trained_model(config, place, trained, frames, held_out)
            if trained is None:
                return None
            model = place / "model.safetensors"
            held = calibrated_copy(trained, model, frames, held_out, batch_size)
            found = _simulate(structure, settings, config.run.seed + number, model, place)
            if found is None:
                return None
            one = Round(
                number=number,
                frames=len(frames),
                force_mae=held.force_mae,
                picoseconds=found.picoseconds,
                outside=len(found.outside),
                labelled=0,
                failure=found.failure,
                finished=not found.outside and bool(held.right.any()),
            )
            if not one.finished:
                chosen = _chosen(found, settings.per_round)
                if not chosen:
                    raise DataError(
                        f"The model in {place} is wrong on all validation frames. Train it for "
                        "longer (optimiser.epochs), with more first structures."
                    )
                with stop_signals() as stopped:
                    new = label_structures(
                        chosen, settings.labels, place / "labels", settings.jobs, stopped
                    )
                if new is None:
                    return None
                comparison = compared(model, new.frames, batch_size)
                one = dataclasses.replace(
                    one, labelled=len(new.frames), new_force_mae=comparison.force_mae
                )
                # Atoms that are closer than in any training frame stay outside without training.
                right = (
                    not found.failure
                    and len(new.frames) == len(chosen)
                    and bool(comparison.right.all())
                    and not any("closest" in atoms.info for atoms in found.outside)
                )
                frames = Frames.joined([frames, new.frames])
                held_out = np.concatenate([held_out, (new.indices % 2 == 1) | right])
            rounds.append(one)
            _tell(one)
            write_json(folder / "rounds.json", {"rounds": [dataclasses.asdict(r) for r in rounds]})
            if one.finished or number == settings.rounds:
                write_hdf5(frames, folder / "frames.h5", f"labels: {settings.labels}")
                shutil.copy(model, folder / "model.safetensors")
                return rounds


def _check_config(config: Config) -> None:
    """Raise a ConfigError if the configuration chooses frames, which is done here."""
    data, default = config.data, DataConfig()
    for name in ("validation", "test", "n_train", "n_validation", "n_test"):
        if getattr(data, name) != getattr(default, name):
            raise ConfigError(
                f"data.{name} is {getattr(data, name)!r}, but active learning chooses the frames "
                "itself. Leave it out, or use a configuration without it, such as own."
            )


def _chosen(found: Simulated, most: int) -> list[Atoms]:
    """Return the structures of a round to label.

    If few were outside, frames of the trajectory are added: the more validation frames there are,
    the better is the guard calibrated.
    """
    chosen = _spread(found.outside, most)
    return chosen + _spread(found.visited, max(0, most // 2 - len(chosen)))


def _note_settings(folder: Path, settings: LearnSettings, config: Config, structure: Atoms) -> None:
    """Store the settings, or raise a ConfigError if the folder was written with other ones."""
    path = folder / "learn.json"
    now: dict[str, Any] = dataclasses.asdict(settings) | {"seed": config.run.seed}
    now["structure"] = structure.get_chemical_formula()
    now["positions"] = hashlib.sha256(structure.positions.round(6).tobytes()).hexdigest()[:16]
    changeable = ("rounds", "jobs")
    if path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{name} was {saved.get(name)!r}, is {value!r}"
            for name, value in now.items()
            if name not in changeable and saved.get(name) != value
        ]
        if changed:
            raise ConfigError(
                f"{folder} was written with other settings: {'; '.join(changed)}. Restore these "
                "values (the options have the same names, such as --first), or choose another "
                "folder."
            )
    write_json(path, now)


def _first(
    structure: Atoms, settings: LearnSettings, config: Config, folder: Path
) -> Frames | None:
    """Return the first labelled frames, from dynamics of the sampler, or None if stopped."""
    sampler = settings.sampler or settings.labels
    options = PretrainingConfig(
        calculator=sampler,
        frames=settings.first,
        temperature=settings.first_temperature or HOTTER * settings.temperature,
    )
    start = Frames(
        numbers=structure.numbers.astype(np.int64),
        positions=structure.positions,
        energies=np.zeros(1),
        starts=np.array([0, len(structure)]),
        cells=structure.cell.array[None] if structure.pbc.any() else None,
        pbc=structure.pbc[None] if structure.pbc.any() else None,
    )
    path = folder / "first" / "frames.h5"
    with stop_signals() as stopped:
        if not sample_frames(options, start, path, config.run.seed, stopped, every=SPACING):
            return None
        frames = read_hdf5(path)
        if sampler == settings.labels:
            return frames
        structures = [frames.atoms(f) for f in range(len(frames))]
        labelled = label_structures(
            structures, settings.labels, folder / "first" / "labels", settings.jobs, stopped
        )
        return None if labelled is None else labelled.frames


def _simulate(
    structure: Atoms, settings: LearnSettings, seed: int, model: Path, place: Path
) -> Simulated | None:
    """Simulate with the guard; return None if stopped."""
    file = place / "outside.extxyz"
    atoms = structure.copy()
    atoms.calc = LKMCalculator(
        model, "cpu", compile=True, on_extrapolation="save", extrapolation_file=file
    )
    steps = round(1000 * settings.picoseconds / settings.timestep)
    every = max(1, round(100 / settings.timestep))
    md = MDSettings(
        temperature=settings.temperature,
        timestep=settings.timestep,
        seed=seed,
        log_every=every,
        frame_every=every,
    )
    record = place / "simulation.json"
    saved: dict[str, Any] = {"outside": {}}
    if record.exists():
        saved |= json.loads(record.read_text(encoding="utf-8"))
    simulation = Simulation(atoms, md, place / "simulation")
    try:
        # What is outside is saved before the state of the simulation: an interrupted simulation
        # decides as it did before, and one that ended is not continued.
        while "failure" not in saved and simulation.step < steps:
            chunks, rest = divmod(simulation.step, CHUNK)
            if rest == 0:
                count = saved["outside"].setdefault(str(chunks), len(read_all(file)))
                write_json(record, saved)
                if count >= SURPLUS * settings.per_round:
                    break
            if not simulation.run(min(steps, (chunks + 1) * CHUNK)):
                return None
        saved.setdefault("failure", "")
    except MDError as error:
        saved["failure"] = str(error).split(":")[0]
        if not file.exists():
            raise DataError(
                f"The simulation in {place} failed, but no structure was outside the training "
                f"distribution: {error} Train it for longer (optimiser.epochs)."
            ) from error
    saved.setdefault("picoseconds", simulation.step * settings.timestep / 1000)
    write_json(record, saved)
    visited = [] if saved["failure"] else read_structures(simulation.record.trajectory)[1:]
    return Simulated(read_all(file), visited, saved["picoseconds"], saved["failure"])


def read_all(file: Path) -> list[Atoms]:
    """Return the structures of a file that may not exist."""
    return read_structures(file) if file.exists() else []


def _spread(structures: list[Atoms], most: int) -> list[Atoms]:
    """Return at most so many structures, evenly spaced."""
    most = min(most, len(structures))
    if most == 0:
        return []
    chosen = np.linspace(0, len(structures) - 1, most).round().astype(int)
    return [structures[k] for k in np.unique(chosen).tolist()]


def _tell(one: Round) -> None:
    """Log a round."""
    logger.info(
        "round %d: %d labelled frames, force MAE %.1f meV/Å on validation frames; %.3g ps of MD "
        "with %d structures outside the training distribution%s%s",
        *(one.number, one.frames, one.force_mae, one.picoseconds, one.outside),
        f" ({one.failure})" if one.failure else "",
        ""
        if one.new_force_mae is None
        else f"; force MAE {one.new_force_mae:.1f} meV/Å on new labels",
    )

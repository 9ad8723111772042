"""Langevin dynamics from given structures, whose frames are labelled by its calculator."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculatorError
from ase.md import thermalize_momenta
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary
from tqdm import tqdm

from lkm_calc.runtime import hide_progress

from ..config import ConfigError, PretrainingConfig
from ..data import DataError, Frames
from ..formats import read_description, read_hdf5, write_hdf5
from .calculators import make_calculator

logger = logging.getLogger("lkm_train")

TRAJECTORIES = 20
"""Default of the maximum number of trajectories, each from another structure."""
STEP, EVERY, EQUILIBRATION = 1.0, 3, 100
"""Time step in fs; steps between frames; steps before the first one."""
FRICTION = 0.02
"""Friction in 1/fs."""
FEWEST = 0.5
"""Fraction of the frames below which a calculator that fails is an error."""


def sample_frames(
    config: PretrainingConfig,
    structures: Frames,
    path: Path,
    seed: int,
    stop: Sequence[int] = (),
    stress: bool = False,
    every: int = EVERY,
    trajectories: int = TRAJECTORIES,
) -> bool:
    """Run Langevin dynamics with a calculator and write frames with its energies and forces.

    Trajectories start from different structures. Each is saved when it ends, so that an interrupted
    call continues with the trajectory that was interrupted. If the file exists, nothing is done.

    Args:
        config: Calculator, temperature and number of frames.
        structures: Structures from which to start; their labels are not used.
        path: HDF5 file to write.
        seed: Seed of velocities, random forces and the choice of structures.
        stop: Filled by a signal handler: the call returns after the current step.
        stress: Also compute the stress of periodic structures, if the calculator can.
        every: Steps of ``STEP`` fs between frames.
        trajectories: Maximum number of trajectories, at least 1.

    Returns:
        Whether the file is complete.

    Raises:
        ConfigError: The calculator is not available, or the file was sampled with other settings or
            from other structures.
        DataError: There is no structure of more than one atom, or the calculator fails too often.
    """
    chosen = _starts(structures, seed, min(trajectories, config.frames))
    settings = {
        "calculator": config.calculator,
        "temperature": config.temperature,
        "frames": config.frames,
        "seed": seed,
        "trajectories": len(chosen),
        "structures": _digest(chosen),
    }
    if path.exists():
        _check_settings(path, settings)
        return True
    calculator: Any = make_calculator(config.calculator)
    stress = stress and "stress" in calculator.implemented_properties
    counts = np.full(len(chosen), config.frames // len(chosen))
    counts[: config.frames % len(chosen)] += 1
    logger.info(
        "dynamics at %g K with %s, %d frames",
        *(config.temperature, config.calculator, config.frames),
    )
    parts, failures = [], []
    with tqdm(
        total=config.frames, desc=config.calculator, unit="frame", disable=hide_progress()
    ) as bar:
        for k, (atoms, count) in enumerate(zip(chosen, counts.tolist(), strict=True)):
            part = path.parent / "trajectories" / f"{k + 1}.h5"
            parts.append(part)
            if part.exists():
                _check_settings(part, settings)
                bar.update(count)
                continue
            atoms.calc = calculator
            rng = np.random.default_rng([seed, k])
            schedule = (count, every, config.temperature)
            images, failure = _trajectory(atoms, schedule, rng, stop, stress, bar)
            if stop:
                return False
            if failure:
                failures.append(failure)
            if images:
                periodic = structures.cells is not None
                write_hdf5(_frames_of(images, periodic, stress), part, json.dumps(settings))
            else:
                parts.pop()
    frames = Frames.joined([read_hdf5(part) for part in parts]) if parts else None
    found = 0 if frames is None else len(frames)
    if failures:
        logger.warning(
            "%s failed in %d of %d trajectories (%s): %d frames instead of %d.",
            *(config.calculator, len(failures), len(chosen), failures[0], found, config.frames),
        )
    if frames is None or found < FEWEST * config.frames:
        raise DataError(
            f"Dynamics with {config.calculator} gave only {found} of {config.frames} frames. Check "
            f"that it can compute these structures, or lower the temperature, now "
            f"{config.temperature:g} K."
        )
    write_hdf5(frames, path, json.dumps(settings))
    shutil.rmtree(path.parent / "trajectories")
    return True


def _starts(structures: Frames, seed: int, count: int) -> list[Atoms]:
    """Return structures of more than one atom, chosen at random."""
    usable = np.flatnonzero(structures.sizes > 1)
    if len(usable) == 0:
        raise DataError("Pretraining needs a structure of more than one atom to start from.")
    order = np.random.default_rng(seed).permutation(usable)[:count]
    return [structures.atoms(f) for f in order.tolist()]


def _digest(structures: Sequence[Atoms]) -> str:
    """Return a checksum of elements and positions."""
    found = hashlib.sha256()
    for atoms in structures:
        found.update(atoms.numbers.tobytes() + atoms.positions.round(6).tobytes())
    return found.hexdigest()[:16]


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Raise a ConfigError if a file was sampled with other settings.

    Settings that older versions did not store are not compared.
    """
    saved = json.loads(read_description(path))
    changed = ", ".join(
        f"{name} was {saved[name]!r}, now {value!r}"
        for name, value in settings.items()
        if name in saved and saved[name] != value
    )
    if changed:
        raise ConfigError(
            f"{path} was sampled with other settings: {changed}. Use a new run.directory or "
            "output folder, or delete the file."
        )


def _trajectory(
    atoms: Atoms,
    schedule: tuple[int, int, float],
    rng: np.random.Generator,
    stop: Sequence[int],
    stress: bool,
    bar: "tqdm[Any]",
) -> tuple[list[dict[str, Any]], str]:
    """Return the results of the frames of a trajectory, and why it ended early, if it did.

    The schedule is the number of frames, the steps between them and the temperature.
    """
    count, every, temperature = schedule
    thermalize_momenta(atoms, temperature, rng=rng)
    Stationary(atoms)
    dynamics = Langevin(
        atoms,
        STEP * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        fixcm=False,
        rng=rng,
    )
    images: list[dict[str, Any]] = []
    try:
        dynamics.run(EQUILIBRATION)
        while len(images) < count and not stop:
            dynamics.run(every)
            image = {"atoms": atoms.copy(), "energy": atoms.get_potential_energy()}
            image["forces"] = atoms.get_forces()
            image["stress"] = np.full((3, 3), np.nan)
            if stress and atoms.pbc.any():
                image["stress"] = atoms.get_stress(voigt=False)
            if not (np.isfinite(image["energy"]) and np.isfinite(image["forces"]).all()):
                return images, "NaN or infinite forces"
            images.append(image)
            bar.update()
    except CalculatorError as error:
        return images, str(error)
    return images, ""


def _frames_of(images: Sequence[dict[str, Any]], periodic: bool, stress: bool) -> Frames:
    """Return the frames of a trajectory; those of a periodic set have cells."""
    atoms = images[0]["atoms"]
    return Frames(
        numbers=np.tile(atoms.numbers, len(images)).astype(np.int64),
        positions=np.concatenate([image["atoms"].positions for image in images]),
        energies=np.array([image["energy"] for image in images]),
        starts=np.arange(len(images) + 1) * len(atoms),
        forces=np.concatenate([image["forces"] for image in images]),
        cells=np.array([image["atoms"].cell.array for image in images]) if periodic else None,
        pbc=np.tile(atoms.pbc, (len(images), 1)) if periodic else None,
        stress=np.array([image["stress"] for image in images]) if periodic and stress else None,
    )

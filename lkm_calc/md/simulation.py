"""Molecular dynamics with ASE, with sanity checks and exact restarts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase
import numpy as np
from tqdm import tqdm

from ..graph import edges_within
from ..runtime import hide_progress, only_process, stop_signals
from ..uncertainty import ExtrapolationError, Guard
from .constant_pressure import CONSTANT_PRESSURE, SIZES, check_bulk, is_bulk, pressure, volume
from .ensembles import (
    MDSettings,
    conserved_energy,
    degrees_of_freedom,
    make_dynamics,
    restore_thermostat,
    set_velocities,
    temperature,
    thermostat_state,
)
from .record import LogRow, MDRecord, RestartError, differences

BOND = 2.5
"""Distance in Å: an atom with a neighbour this close at the start counts as bound."""
LOST = 5.0
"""Distance in Å: a bound atom without a neighbour this close has flown away."""

SAME_FORCES = 1e-3
"""Tolerance in eV/Å for forces of the same model, relative for forces above 1 eV/Å. On a CPU the
difference is zero, on a GPU in float32 about a hundredth of this."""


class MDError(RuntimeError):
    """A simulation failed; the message says when, why, and which files are valid."""


class Simulation:
    """A run of molecular dynamics in a folder: trajectory, log.csv and restart.json.

    If the calculator has a guard (``on_extrapolation``), extrapolation.csv lists the steps outside
    the training distribution.

    If the folder contains a restart file, the run is resumed from it, after a signal or a crash; on
    a CPU the result is bitwise identical to that of an uninterrupted run. Frames and log lines
    written after the restart file are recomputed. This requires a calculator whose results depend
    only on the structure, such as LKMCalculator.

    Args:
        atoms: The structure with its calculator; it is copied, see ``simulation.atoms``.
        settings: Settings of the run.
        folder: Folder of the files.
        restart_every: Steps between restart files.
        identity: JSON values of what else must be equal to resume a run, such as a checksum of
            the initial structure. Settings, elements and the model (by the forces on the saved
            state) are always compared.

    Raises:
        RestartError: The folder contains a different run, or its files are damaged.
        ValueError: The settings do not suit the structure.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        settings: MDSettings,
        folder: str | Path,
        restart_every: int = 1000,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        if restart_every < 1:
            raise ValueError(f"restart_every is {restart_every}; it must be at least 1.")
        if settings.ensemble == "nose-hoover" and atoms.constraints:
            raise ValueError(
                "nose-hoover does not support constraints. Use langevin or bussi, or remove the "
                "constraints."
            )
        if settings.ensemble in CONSTANT_PRESSURE:
            check_bulk(atoms, settings.ensemble)
        self.settings, self.restart_every = settings, restart_every
        self.record = MDRecord(folder, settings.trajectory)
        self.identity = settings.identity | dict(identity or {})
        self.generator = np.random.default_rng(settings.seed)
        self.resumed = self._begun = self.record.restart.exists()
        state = self._load(atoms) if self.resumed else {}
        self.atoms: ase.Atoms = self.record.storable(state.get("atoms", atoms))
        self.atoms.calc = atoms.calc
        # Those of the initial structure: a linear molecule may bend later.
        self.degrees_of_freedom: int = state.get("degrees_of_freedom") or degrees_of_freedom(
            self.atoms, settings.ensemble
        )
        parts = (self.atoms, settings, self.degrees_of_freedom, self.generator)
        if not self.resumed:
            set_velocities(*parts)
        self.dynamics = make_dynamics(*parts)
        # Values at the start, stored in the restart file.
        self.conserved: float | None = state.get("conserved")
        self.bound: list[int] = state.get("bound", [])
        self.first_volume: float | None = state.get("first_volume")
        if self.resumed:
            self._check_forces(np.asarray(state["forces"]))
            self.dynamics.nsteps = state["step"]
            for constraint, lengths in zip(
                self.atoms.constraints, state["bond_lengths"], strict=True
            ):
                if lengths is not None:
                    constraint.bondlengths = lengths
            self._restore_thermostat(state["thermostat"])
            self.generator.bit_generator.state = state["generator"]
            with only_process(self.record.folder):
                self.record.rewind(state["files"])
                if self._guard is not None or self.record.extrapolation.path.exists():
                    self.record.extrapolation.rewind(state["step"])

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.dynamics.nsteps)

    @property
    def temperature(self) -> float:
        """The temperature in K for the degrees of freedom of the ensemble."""
        return temperature(self.atoms, self.degrees_of_freedom)

    def run(self, steps: int) -> bool:
        """Run until a total number of steps is reached.

        On SIGINT and SIGTERM the current step is finished, the restart file is written and the
        method returns.

        Returns:
            Whether the number of steps was reached.

        Raises:
            MDError: Forces are not finite, the temperature is far above the target, an atom has
                flown away, the cell has collapsed or expanded without bound, or the calculator
                raised an error (the ``__cause__``). The files end with the last valid state.
        """
        every = self.settings
        with (
            only_process(self.record.folder),
            stop_signals() as stopped,
            tqdm(total=steps, initial=self.step, unit="step", disable=hide_progress()) as bar,
        ):
            if not self._begun:
                self._begin()
            while self.step < steps and not stopped:
                self._advance()
                bar.update()
                if self.step % every.log_every == 0:
                    bar.set_postfix_str(f"{self.temperature:.0f} K", refresh=False)
                    self.record.add_row(self._row())
                if self.step % every.frame_every == 0:
                    self.record.add_frame(self.atoms)
                if self.step % self.restart_every == 0:
                    self._save()
            self._save()
        return self.step >= steps

    def _begin(self) -> None:
        """Check and record the initial state."""
        if self.record.restart.exists():
            raise RestartError(
                f"Another process has started a run in {self.record.folder} in the meantime. "
                "Choose another folder, or run again to resume it."
            )
        try:
            if not np.isfinite(self.atoms.get_forces()).all():
                raise MDError("the forces are not finite.")
            if self.settings.ensemble in CONSTANT_PRESSURE:
                if pressure(self.atoms) is None:
                    raise MDError(f"{self.settings.ensemble} needs a calculator with stress.")
                self.first_volume = volume(self.atoms)
            self.conserved = conserved_energy(self.dynamics)
            self._check()
        except (ValueError, ExtrapolationError, MDError) as error:
            raise MDError(f"The initial structure cannot be simulated: {error}") from error
        self.bound = np.flatnonzero(self._has_company(BOND)).tolist()
        self.record.begin(is_bulk(self.atoms), self._guard is not None)
        self._begun = True
        self._note_extrapolation(0)
        self.record.add_row(self._row())
        self.record.add_frame(self.atoms)
        self._save()

    def _advance(self) -> None:
        """Do one step and check the result."""
        try:
            self.dynamics.run(1)
            self._note_extrapolation(self.step)
            self._check()
        except (ValueError, ExtrapolationError, MDError) as error:
            if isinstance(error, ExtrapolationError):
                self._note_extrapolation(self.step + 1)
            raise MDError(
                f"Stopped at step {self.step} ({self._picoseconds():.4g} ps): {error} The last "
                f"valid frame is the last one in {self.record.trajectory}; the restart file is "
                "from an earlier step. Start from a relaxed structure, use a shorter time step, or "
                "a model trained on such structures."
            ) from error

    @property
    def _guard(self) -> Guard | None:
        """The guard of the calculator, if it has one."""
        guard = getattr(self.atoms.calc, "guard", None)
        return guard if isinstance(guard, Guard) else None

    def _note_extrapolation(self, step: int) -> None:
        """Log the thresholds exceeded by the last structure of the calculator, if any."""
        if self._guard is not None and self._guard.excesses:
            self.record.extrapolation.add(step, self._time(step), self._guard.excesses)

    def _check(self) -> None:
        """Raise an MDError if the current state is invalid."""
        kelvin = self.temperature
        if not np.isfinite(kelvin):  # the last half step passed them on to the momenta
            raise MDError("the forces are not finite.")
        if kelvin > self.settings.hottest:
            raise MDError(
                f"the temperature is {kelvin:.4g} K, above the limit of "
                f"{self.settings.hottest:g} K."
            )
        self._check_volume()
        # Slower than the rest, so only if the state is about to be stored.
        kept = (self.settings.log_every, self.settings.frame_every, self.restart_every)
        if self.bound and any(self.step % every == 0 for every in kept):
            company = self._has_company(LOST)
            lost = [i for i in self.bound if not company[i]]
            if lost:
                raise MDError(
                    f"atom(s) {lost[:5]} flew away: no other atom is within {LOST:g} Å of them."
                )

    def _check_volume(self) -> None:
        """Raise an MDError if the cell has collapsed or expanded without bound."""
        if self.first_volume is None:
            return
        now = float(self.atoms.get_volume())
        if not SIZES[0] <= now / self.first_volume <= SIZES[1]:
            raise MDError(
                f"the volume is {now:.4g} Å³ and was {self.first_volume:.4g} Å³ initially: the "
                "cell has collapsed, or its atoms have evaporated. Check the pressure."
            )

    def _has_company(self, distance: float) -> np.ndarray:
        """Return for each atom whether another atom or an image is within a distance in Å."""
        atoms, cell = self.atoms, np.asarray(self.atoms.cell.complete())
        near = edges_within(atoms.positions, distance, cell, atoms.pbc)[0]
        return np.bincount(near[1], minlength=len(atoms)) > 0

    def _save(self) -> None:
        self.record.save(
            {
                "identity": self.identity,
                "step": self.step,
                "atoms": self.atoms,
                # ASE does not write the lengths of constrained bonds.
                "bond_lengths": [
                    getattr(constraint, "bondlengths", None)
                    for constraint in self.atoms.constraints
                ],
                "thermostat": thermostat_state(self.dynamics),
                "generator": self.generator.bit_generator.state,
                "degrees_of_freedom": self.degrees_of_freedom,
                "conserved": self.conserved,
                "bound": self.bound,
                "first_volume": self.first_volume,
                "forces": self.atoms.get_forces(apply_constraint=False),
            }
        )

    def _load(self, atoms: ase.Atoms) -> dict[str, Any]:
        """Return the saved state if it belongs to this run."""
        state = self.record.load()
        different = differences(state["identity"], self.identity)
        if not np.array_equal(state["atoms"].numbers, atoms.numbers):
            saved = state["atoms"].get_chemical_formula()
            different.append(f"structure was {saved}, is {atoms.get_chemical_formula()}")
        if different:
            raise RestartError(
                f"{self.record.folder} contains a different run: {'; '.join(different)}. Restore "
                "these values to resume it, or choose another folder."
            )
        return state

    def _check_forces(self, saved: np.ndarray) -> None:
        """Raise a RestartError if the forces differ from those saved by the run."""
        off = np.abs(self.atoms.get_forces(apply_constraint=False) - saved).max()
        if not off <= SAME_FORCES * max(1.0, np.abs(saved).max()):
            raise RestartError(
                f"{self.record.folder} contains a run with a different model: the forces on its "
                f"last state differ by {off:.3g} eV/Å. Use the same model, or choose another "
                "folder."
            )

    def _restore_thermostat(self, saved: Mapping[str, Any]) -> None:
        """Restore the state of the integrator, or raise a RestartError."""
        own = thermostat_state(self.dynamics)
        if {k: np.shape(v) for k, v in own.items()} != {k: np.shape(v) for k, v in saved.items()}:
            raise RestartError(
                f"{self.record.restart} is not a readable restart file (thermostat is {saved!r}). "
                "Remove it to start the run again, or choose another folder."
            )
        restore_thermostat(self.dynamics, saved)

    def _picoseconds(self) -> float:
        return self._time(self.step)

    def _time(self, step: int) -> float:
        """Return the time of a step in ps."""
        return step * self.settings.timestep / 1000

    def _row(self) -> LogRow:
        potential = float(self.atoms.get_potential_energy())
        kinetic = float(self.atoms.get_kinetic_energy())
        drift, conserved = None, conserved_energy(self.dynamics)
        if conserved is not None and self.conserved is not None:
            drift = 1000 * (conserved - self.conserved) / len(self.atoms)
        return LogRow(
            self.step,
            self._picoseconds(),
            potential,
            kinetic,
            potential + kinetic,
            self.temperature,
            drift,
            pressure(self.atoms),
            volume(self.atoms),
        )

"""Molecular dynamics with ASE that watches over itself and continues exactly where it stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase
import numpy as np
from tqdm import tqdm

from ..graph import edges_within
from ..runtime import hide_progress, only_process, stop_signals
from ..uncertainty import ExtrapolationError
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
"""Distance in Å: an atom that starts with another one this near is part of something."""
LOST = 5.0
"""Distance in Å: such an atom that has no other one this near has flown off."""

SAME_FORCES = 1e-3
"""Largest difference of forces in eV/Å, in proportion more beyond 1 eV/Å, between two computations
with the same model: on a CPU there is none, on a GPU in float32 a hundredth of this."""


class MDError(RuntimeError):
    """A simulation went wrong; the message says when, how, and what is left of it."""


class Simulation:
    """A run of molecular dynamics in a folder: trajectory, log.csv and restart.json.

    Where the folder holds a restart file, the run goes on from there, on the CPU to the same
    numbers, bit for bit, as if it had never stopped, be it by a signal or by a crash; frames and
    lines written after the restart file are made again. That needs a calculator whose results
    depend on the structure alone, as those of LKMCalculator do.

    Args:
        atoms: The structure with its calculator; it is copied, see ``simulation.atoms``.
        settings: What decides the trajectory.
        folder: Where the files are.
        restart_every: Steps from one restart file to the next.
        identity: JSON values of what else must be the same for a run to be continued, such as
            a checksum of the first structure. Settings, elements and, by the forces on the saved
            state, the model are always compared.

    Raises:
        RestartError: The folder holds another run, or its files are damaged.
        ValueError: The structure cannot be simulated so.
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
                "nose-hoover cannot hold the structure's constraints. Take langevin or bussi, or "
                "remove them."
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
        # Of the first structure: a molecule that is linear there may bend.
        self.degrees_of_freedom: int = state.get("degrees_of_freedom") or degrees_of_freedom(
            self.atoms, settings.ensemble
        )
        parts = (self.atoms, settings, self.degrees_of_freedom, self.generator)
        if not self.resumed:
            set_velocities(*parts)
        self.dynamics = make_dynamics(*parts)
        # Those of the start, which a restart file brings back.
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

    @property
    def step(self) -> int:
        """The number of steps made."""
        return int(self.dynamics.nsteps)

    @property
    def temperature(self) -> float:
        """The temperature in K over the degrees of freedom that the ensemble moves."""
        return temperature(self.atoms, self.degrees_of_freedom)

    def run(self, steps: int) -> bool:
        """Go on until this many steps have been made in all.

        SIGINT and SIGTERM finish the step, write the restart file and return.

        Returns:
            Whether that many have been made.

        Raises:
            MDError: Forces are not finite, the temperature is far from that asked for, an atom has
                flown off, the cell has collapsed or grown without bound, or the calculator refuses
                the structure (its error is the ``__cause__``). The files end with the last good
                state.
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
        """Check and record the first state."""
        if self.record.restart.exists():
            raise RestartError(
                f"Another process has begun a run in {self.record.folder} meanwhile. Choose "
                "another folder, or start again to go on with it."
            )
        try:
            if not np.isfinite(self.atoms.get_forces()).all():
                raise MDError("the forces are not finite.")
            if self.settings.ensemble in CONSTANT_PRESSURE:
                if pressure(self.atoms) is None:
                    raise MDError(f"{self.settings.ensemble} needs a calculator that has stress.")
                self.first_volume = volume(self.atoms)
            self.conserved = conserved_energy(self.dynamics)
            self._check()
        except (ValueError, ExtrapolationError, MDError) as error:
            raise MDError(f"The first structure cannot be simulated: {error}") from error
        self.bound = np.flatnonzero(self._has_company(BOND)).tolist()
        self.record.begin(is_bulk(self.atoms))
        self._begun = True
        self.record.add_row(self._row())
        self.record.add_frame(self.atoms)
        self._save()

    def _advance(self) -> None:
        """Make a step, and make sure that it is sound."""
        try:
            self.dynamics.run(1)
            self._check()
        except (ValueError, ExtrapolationError, MDError) as error:
            raise MDError(
                f"Stopped at step {self.step} ({self._picoseconds():.4g} ps): {error} The last "
                f"good frame is the last one of {self.record.trajectory}; the restart file is of "
                "an earlier step. Start from a relaxed structure, take a shorter step, or a "
                "model that was trained on such structures."
            ) from error

    def _check(self) -> None:
        """Raise an MDError if the present state is nonsense."""
        kelvin = self.temperature
        if not np.isfinite(kelvin):  # the last half step has taken them to the momenta
            raise MDError("the forces are not finite.")
        if kelvin > self.settings.hottest:
            raise MDError(f"the temperature is {kelvin:.4g} K, beyond {self.settings.hottest:g} K.")
        self._check_volume()
        # Slower than the rest, so only where the state is about to be kept.
        kept = (self.settings.log_every, self.settings.frame_every, self.restart_every)
        if self.bound and any(self.step % every == 0 for every in kept):
            company = self._has_company(LOST)
            lost = [i for i in self.bound if not company[i]]
            if lost:
                raise MDError(
                    f"atom(s) {lost[:5]} flew off: no other atom is within {LOST:g} Å of them."
                )

    def _check_volume(self) -> None:
        """Raise an MDError if the cell has collapsed or boiled away."""
        if self.first_volume is None:
            return
        now = float(self.atoms.get_volume())
        if not SIZES[0] <= now / self.first_volume <= SIZES[1]:
            raise MDError(
                f"the volume is {now:.4g} Å³ and was {self.first_volume:.4g} Å³ at first: the cell "
                "has collapsed, or its atoms have evaporated. Is the pressure right?"
            )

    def _has_company(self, distance: float) -> np.ndarray:
        """Tell of each atom whether another one, or an image, is within a distance in Å."""
        atoms, cell = self.atoms, np.asarray(self.atoms.cell.complete())
        near = edges_within(atoms.positions, distance, cell, atoms.pbc)[0]
        return np.bincount(near[1], minlength=len(atoms)) > 0

    def _save(self) -> None:
        self.record.save(
            {
                "identity": self.identity,
                "step": self.step,
                "atoms": self.atoms,
                # ASE writes constraints without the lengths that they hold bonds at.
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
        """Return the saved state if it is one of this run."""
        state = self.record.load()
        different = differences(state["identity"], self.identity)
        if not np.array_equal(state["atoms"].numbers, atoms.numbers):
            saved = state["atoms"].get_chemical_formula()
            different.append(f"structure was {saved}, is {atoms.get_chemical_formula()}")
        if different:
            raise RestartError(
                f"{self.record.folder} holds another run: {'; '.join(different)}. Restore these "
                "values to continue it, or choose another folder."
            )
        return state

    def _check_forces(self, saved: np.ndarray) -> None:
        """Raise a RestartError if the calculator computes other forces than that of the run."""
        off = np.abs(self.atoms.get_forces(apply_constraint=False) - saved).max()
        if not off <= SAME_FORCES * max(1.0, np.abs(saved).max()):
            raise RestartError(
                f"{self.record.folder} holds a run with another model: the forces on its last "
                f"state differ by {off:.3g} eV/Å. Attach the same model, or choose another folder."
            )

    def _restore_thermostat(self, saved: Mapping[str, Any]) -> None:
        """Give the integrator back what it remembered, or raise a RestartError."""
        own = thermostat_state(self.dynamics)
        if {k: np.shape(v) for k, v in own.items()} != {k: np.shape(v) for k, v in saved.items()}:
            raise RestartError(
                f"{self.record.restart} is not a readable restart file (thermostat is {saved!r}). "
                "Remove it to start the run again, or choose another folder."
            )
        restore_thermostat(self.dynamics, saved)

    def _picoseconds(self) -> float:
        return self.step * self.settings.timestep / 1000

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

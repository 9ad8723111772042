"""MD ensembles: ASE's integrators with thermostats, barostats and their state."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ase
import numpy as np
from ase import units
from ase.md import thermalize_momenta
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

from .constant_pressure import (
    CONSTANT_PRESSURE,
    barostat_state,
    count_degrees_of_freedom,
    extended_energy,
    make_barostatted,
    restore_barostat,
)

CONSTANT_VOLUME = ("nve", "langevin", "nose-hoover", "bussi")
ENSEMBLES = (*CONSTANT_VOLUME, *CONSTANT_PRESSURE)

_POSITIVE = ("timestep", "friction", "damping", "pressure_damping", "log_every", "frame_every")


@dataclass(frozen=True)
class MDSettings:
    """Settings of a run; together with the structure and the model they determine the trajectory.

    Raises:
        ValueError: A value is invalid.
    """

    ensemble: str = "langevin"
    """One of ENSEMBLES."""
    temperature: float = 300.0
    """In K, of the thermostat and of the initial velocities."""
    timestep: float = 0.5
    """In fs."""
    friction: float = 0.01
    """In 1/fs, for langevin."""
    damping: float = 100.0
    """Time constant of the thermostat in fs, for nose-hoover, bussi and the npt ensembles."""
    pressure: float | None = None
    """In bar; required for the npt ensembles, not allowed for others."""
    pressure_damping: float = 1000.0
    """Time constant of the barostat in fs, for the npt ensembles."""
    initial_temperature: float | None = None
    """In K, of the initial velocities; ``temperature`` if None."""
    keep_velocities: bool = False
    """Start with the velocities of the structure, without its drift and rotation."""
    seed: int = 0
    """Random seed of the initial velocities and the random forces."""
    log_every: int = 10
    """Steps between lines of the log."""
    frame_every: int = 20
    """Steps between frames of the trajectory."""
    trajectory: str = "trajectory.traj"
    """File name in the folder of the run; .traj, .xyz or .extxyz."""

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise ValueError(
                f"ensemble is {self.ensemble!r}; choose one of {', '.join(ENSEMBLES)}."
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise ValueError(f"{name} is {value}; it must be positive and finite.")
        self._check_pressure()
        lowest = 0 if self.ensemble == "nve" else np.nextafter(0, 1)
        for name, value in (
            ("temperature", self.temperature),
            ("initial_temperature", self.start),
        ):
            if not lowest <= value < np.inf:
                raise ValueError(f"{name} is {value}; it must be positive, in K.")

    def _check_pressure(self) -> None:
        if self.ensemble not in CONSTANT_PRESSURE:
            if self.pressure is not None:
                raise ValueError(
                    f"pressure is {self.pressure} bar, but {self.ensemble} has a fixed cell. "
                    f"Choose {' or '.join(CONSTANT_PRESSURE)}, or leave out the pressure."
                )
        elif self.pressure is None:
            raise ValueError(f"{self.ensemble} needs a pressure in bar, for example 1.")
        elif not np.isfinite(self.pressure):
            raise ValueError(f"pressure is {self.pressure}; it must be finite, in bar.")

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that must be equal to resume a run, as JSON values."""
        values = asdict(self)
        if self.ensemble not in CONSTANT_PRESSURE:  # for restart files older than these options
            del values["pressure"], values["pressure_damping"]
        return values

    @property
    def start(self) -> float:
        """Temperature of the initial velocities in K."""
        return self.temperature if self.initial_temperature is None else self.initial_temperature

    @property
    def hottest(self) -> float:
        """Temperature in K above which a run is stopped."""
        return 10 * max(self.temperature, self.start) + 1000


def degrees_of_freedom(atoms: ase.Atoms, ensemble: str) -> int:
    """Return the number of degrees of freedom that share the kinetic energy.

    All of them with a Langevin thermostat or constraints. Otherwise momentum is conserved, and
    without a cell also angular momentum.
    """
    free = int(atoms.get_number_of_degrees_of_freedom())
    if ensemble != "langevin" and not atoms.constraints:
        free -= 3
        if not atoms.pbc.any():
            moments = atoms.get_moments_of_inertia()
            free -= int((moments > 1e-6 * moments.max()).sum())  # two of a linear molecule
    if free < 1:
        raise ValueError(
            f"{atoms.get_chemical_formula()} with its constraints has no degrees of freedom in the "
            f"ensemble {ensemble}. Use more atoms, or langevin."
        )
    return free


def temperature(atoms: ase.Atoms, free: int) -> float:
    """Return the temperature in K for ``free`` degrees of freedom."""
    return float(2 * atoms.get_kinetic_energy() / (free * units.kB))


def set_velocities(
    atoms: ase.Atoms, settings: MDSettings, free: int, generator: np.random.Generator
) -> None:
    """Draw the initial velocities, without drift and rotation where these are conserved."""
    if not settings.keep_velocities:
        thermalize_momenta(atoms, settings.start, rng=generator)
    elif not atoms.has("momenta"):
        raise ValueError(
            "keep_velocities is True, but the structure has no velocities. Start from a frame of a "
            "trajectory, or set keep_velocities to False."
        )
    if settings.ensemble != "langevin" and not atoms.constraints:
        Stationary(atoms, preserve_temperature=False)
        if not atoms.pbc.any():
            ZeroRotation(atoms, preserve_temperature=False)
    if not settings.keep_velocities and settings.start > 0:
        atoms.set_momenta(atoms.get_momenta() * (settings.start / temperature(atoms, free)) ** 0.5)


def make_dynamics(
    atoms: ase.Atoms, settings: MDSettings, free: int, generator: np.random.Generator
) -> MolecularDynamics:
    """Return ASE's integrator, with a thermostat for ``free`` degrees of freedom."""
    step = settings.timestep * units.fs
    kelvin, damping = settings.temperature, settings.damping * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, step)
    if settings.ensemble == "langevin":
        friction = settings.friction / units.fs
        return Langevin(
            atoms,
            step,
            temperature_K=kelvin,
            friction=friction,
            fixcm=False,  # the thermostat also acts on the centre of mass
            rng=generator,
        )
    if settings.pressure is not None:
        return make_barostatted(
            atoms,
            settings.ensemble,
            free,
            timestep=settings.timestep,
            temperature=kelvin,
            pressure=settings.pressure,
            damping=settings.damping,
            pressure_damping=settings.pressure_damping,
        )
    # ASE counts 3N degrees of freedom. With drift and rotation conserved at zero, the others
    # would be heated to 3N/(3N − 6) of the target temperature: 386 K for ethanol at 300 K.
    if settings.ensemble == "bussi":
        bussi = Bussi(atoms, step, temperature_K=kelvin, taut=damping, rng=generator)
        bussi.ndof = free
        bussi.target_kinetic_energy = 0.5 * free * units.kB * kelvin
        return bussi
    dynamics = NoseHooverChainNVT(atoms, step, temperature_K=kelvin, tdamp=damping)
    count_degrees_of_freedom(dynamics._thermostat, free, kelvin)
    return dynamics


def conserved_energy(dynamics: MolecularDynamics) -> float | None:
    """Return the conserved quantity of the ensemble in eV, or None if there is none."""
    if isinstance(dynamics, Langevin):
        return None
    if isinstance(dynamics, IsotropicMTKNPT | MTKNPT):
        return extended_energy(dynamics)
    bath = 0.0
    if isinstance(dynamics, NoseHooverChainNVT):
        bath = dynamics._thermostat.get_thermostat_energy()
    if isinstance(dynamics, Bussi):
        bath = -dynamics.transferred_energy
    return float(dynamics.atoms.get_total_energy() + bath)


def thermostat_state(dynamics: MolecularDynamics) -> dict[str, Any]:
    """Return the state of an integrator apart from the atoms and the random generator."""
    if isinstance(dynamics, NoseHooverChainNVT):
        chain = dynamics._thermostat
        return {"eta": chain._eta, "p_eta": chain._p_eta}
    if isinstance(dynamics, Bussi):
        return {"transferred_energy": dynamics.transferred_energy}
    if isinstance(dynamics, IsotropicMTKNPT | MTKNPT):
        return barostat_state(dynamics)
    return {}


def restore_thermostat(dynamics: MolecularDynamics, saved: Mapping[str, Any]) -> None:
    """Restore the state saved by :func:`thermostat_state`."""
    if isinstance(dynamics, NoseHooverChainNVT):
        dynamics._thermostat._eta = saved["eta"]
        dynamics._thermostat._p_eta = saved["p_eta"]
    if isinstance(dynamics, Bussi):
        dynamics.transferred_energy = saved["transferred_energy"]
    if isinstance(dynamics, IsotropicMTKNPT | MTKNPT):
        restore_barostat(dynamics, saved)

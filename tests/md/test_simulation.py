"""Molecular dynamics: settings, baths, what is written, and runs that go wrong."""

import csv
import signal
import threading

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.harmonic import SpringCalculator
from ase.constraints import FixAtoms

from lkm_calc import LKMCalculator
from lkm_calc.md.ensembles import CONSTANT_VOLUME, MDSettings, degrees_of_freedom
from lkm_calc.md.record import LogRow
from lkm_calc.md.simulation import MDError, Simulation

from ..springs import spring_molecule
from ..support import rattled


class Faulty(Calculator):
    """Springs to the start, with a fault after some calls."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, atoms, fault, after):
        super().__init__()
        self.springs = SpringCalculator(atoms.positions.copy(), 5.0)
        self.fault, self.left = fault, after

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        copy = atoms.copy()
        copy.calc = self.springs
        self.results = {"energy": copy.get_potential_energy(), "forces": copy.get_forces()}
        self.left -= 1
        if self.left < 0:
            self.fault(self.results)


def copper(repeat=(1, 1, 1)):
    atoms = bulk("Cu", cubic=True) * repeat
    atoms.calc = EMT()
    return atoms


def springs(name="CH3CH2OH"):
    atoms = molecule(name)
    atoms.calc = SpringCalculator(atoms.positions.copy(), 5.0)
    return atoms


def log(simulation):
    with simulation.record.log.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": "npt"}, "ensemble is 'npt'; choose one of nve"),
        ({"timestep": 0.0}, "timestep is 0.0"),
        ({"timestep": float("nan")}, "timestep is nan"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"log_every": 0}, "log_every is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MDSettings(**changes)


@pytest.mark.parametrize("name", ["../t.traj", "t.pdb", "t"])
def test_the_trajectory_has_a_suffix_and_no_folder(name, tmp_path):
    with pytest.raises(ValueError, match=r"ends in .traj, .xyz or .extxyz"):
        Simulation(springs(), MDSettings(trajectory=name), tmp_path)


def test_degrees_of_freedom():
    assert degrees_of_freedom(molecule("CH3CH2OH"), "langevin") == 27
    assert degrees_of_freedom(molecule("CH3CH2OH"), "nve") == 21
    assert degrees_of_freedom(molecule("CO2"), "nve") == 4
    assert degrees_of_freedom(copper(), "nose-hoover") == 9
    fixed = copper()
    fixed.set_constraint(FixAtoms([0]))
    assert degrees_of_freedom(fixed, "bussi") == 9
    with pytest.raises(ValueError, match="no degrees of freedom"):
        degrees_of_freedom(Atoms("He"), "nve")


@pytest.mark.parametrize("ensemble", CONSTANT_VOLUME)
@pytest.mark.parametrize("make", [springs, copper])
def test_the_first_velocities_have_the_temperature_and_no_drift(ensemble, make, tmp_path):
    simulation = Simulation(make(), MDSettings(ensemble, temperature=250.0), tmp_path)
    atoms = simulation.atoms
    assert simulation.temperature == pytest.approx(250, rel=1e-12)
    if ensemble != "langevin":
        assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-12
        if not atoms.pbc.any():
            assert np.abs(atoms.get_angular_momentum()).max() < 1e-12
    assert simulation.step == 0


def test_velocities_are_kept_on_demand(tmp_path):
    atoms = springs()
    settings = MDSettings("langevin", keep_velocities=True)
    with pytest.raises(ValueError, match="structure has no velocities"):
        Simulation(atoms, settings, tmp_path)
    atoms.set_momenta(np.random.default_rng(0).normal(size=(9, 3)))
    kept = Simulation(atoms, settings, tmp_path).atoms.get_momenta()
    assert np.array_equal(kept, atoms.get_momenta())


@pytest.mark.parametrize("ensemble", ["nve", "nose-hoover", "bussi"])
def test_what_the_ensemble_conserves_is_conserved(ensemble, tmp_path):
    drifts = []
    for timestep in (1.0, 0.5):
        folder = tmp_path / str(timestep)
        settings = MDSettings(ensemble, timestep=timestep, damping=20.0, log_every=1)
        simulation = Simulation(copper((2, 1, 1)), settings, folder)
        assert simulation.run(round(60 / timestep))
        rows = log(simulation)
        drifts.append(max(abs(float(row["drift_meV_per_atom"])) for row in rows))
    assert drifts[0] < 0.2
    assert drifts[1] < 0.35 * drifts[0], "of second order in the time step"


@pytest.mark.parametrize("ensemble", ["langevin", "nose-hoover", "bussi"])
def test_the_bath_holds_the_temperature_of_a_molecule(ensemble, tmp_path):
    """With 3N degrees of freedom instead of 3N − 6 the mean would be 386 K and more."""
    settings = MDSettings(
        ensemble, timestep=1.0, damping=10.0, friction=0.1, log_every=5, frame_every=1000
    )
    simulation = Simulation(spring_molecule(), settings, tmp_path)
    simulation.run(1500)
    kelvin = np.array([float(row["temperature_K"]) for row in log(simulation)[50:]])
    assert kelvin.mean() == pytest.approx(300, abs=30)


@pytest.mark.parametrize("name", ["t.traj", "t.xyz"])
def test_what_is_written(name, tmp_path):
    settings = MDSettings("nve", log_every=3, frame_every=4, trajectory=name)
    simulation = Simulation(copper(), settings, tmp_path / "run")
    assert simulation.run(12)
    rows = log(simulation)
    assert tuple(rows[0]) == LogRow._fields
    assert [int(row["step"]) for row in rows] == [0, 3, 6, 9, 12]
    assert [float(row["time_ps"]) for row in rows] == [0, 0.0015, 0.003, 0.0045, 0.006]
    frames = ase.io.read(tmp_path / "run" / name, ":")
    assert len(frames) == 4
    last, atoms = frames[-1], simulation.atoms
    assert np.abs(last.positions - atoms.positions).max() < 1e-8
    assert np.abs(last.get_momenta() - atoms.get_momenta()).max() < 1e-8
    assert np.abs(last.get_forces() - atoms.get_forces()).max() < 1e-8
    assert last.get_potential_energy() == pytest.approx(float(rows[-1]["potential_eV"]), abs=1e-6)
    kinetic = atoms.get_kinetic_energy()
    assert float(rows[-1]["kinetic_eV"]) == kinetic
    assert float(rows[-1]["total_eV"]) == kinetic + atoms.get_potential_energy()
    assert float(rows[-1]["temperature_K"]) == pytest.approx(2 * kinetic / 9 / units.kB)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        ["log.csv", "restart.json", name]
    )


def test_the_structure_given_is_left_alone(tmp_path):
    atoms = copper()
    positions = atoms.positions.copy()
    Simulation(atoms, MDSettings(), tmp_path).run(2)
    assert np.array_equal(atoms.positions, positions)
    assert not atoms.has("momenta")


def hot(results):
    results["forces"] = 3e3 * np.ones_like(results["forces"]) * [[1, 0, 0]]


def infinite(results):
    results["forces"] = results["forces"] * np.nan


def refusing(_results):
    raise ValueError("The model does not like it.")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (hot, r"the temperature is \S+ K, above the limit of 4000 K"),
        (infinite, "the forces are not finite"),
        (refusing, "The model does not like it."),
    ],
)
def test_a_run_that_goes_wrong_stops_with_its_last_good_state(fault, message, tmp_path):
    atoms = molecule("CH3CH2OH")
    atoms.calc = Faulty(atoms, fault, after=14)
    settings = MDSettings("langevin", log_every=1, frame_every=1)
    simulation = Simulation(atoms, settings, tmp_path, restart_every=5)
    with pytest.raises(MDError, match=rf"Stopped at step 1\d .*{message}.*shorter time step"):
        simulation.run(100)
    rows, frames = log(simulation), ase.io.read(tmp_path / "trajectory.traj", ":")
    assert 12 <= len(rows) == len(frames) <= 16
    assert all(float(row["temperature_K"]) < 4000 for row in rows)
    assert all(np.isfinite(frame.positions).all() for frame in frames)
    atoms.calc = Faulty(atoms, fault, after=1000)
    again = Simulation(atoms, settings, tmp_path, restart_every=5)
    assert again.step == 10, "the restart file is of before the fault"
    assert again.run(30)
    assert len(log(again)) == 31


def test_an_atom_that_flies_off_stops_the_run(tmp_path):
    atoms = molecule("H2O")
    atoms.calc = SpringCalculator(atoms.positions.copy(), 0.0)  # nothing holds it
    atoms.set_momenta([[0, 0, 0], [0, 0.5, 0], [0, 0, 0]])
    settings = MDSettings("nve", keep_velocities=True, initial_temperature=1e4, log_every=5)
    with pytest.raises(MDError, match=r"atom\(s\) \[1\] flew away"):
        Simulation(atoms, settings, tmp_path).run(1000)
    assert ase.io.read(tmp_path / "trajectory.traj").get_distance(0, 1) < 5


def test_gases_may_be_thin(tmp_path):
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 20]])
    atoms.calc = SpringCalculator(atoms.positions.copy(), 1.0)
    assert Simulation(atoms, MDSettings("langevin"), tmp_path).run(20)


def test_a_first_structure_that_cannot_be_simulated(tmp_path):
    atoms = molecule("CH3CH2OH")
    atoms.calc = Faulty(atoms, infinite, after=0)
    with pytest.raises(MDError, match="initial structure cannot be simulated: the forces are not"):
        Simulation(atoms, MDSettings(), tmp_path / "run").run(10)
    assert not (tmp_path / "run").exists()


def test_nose_hoover_refuses_constraints(tmp_path):
    atoms = copper()
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="does not support constraints"):
        Simulation(atoms, MDSettings("nose-hoover"), tmp_path)


def test_a_signal_finishes_the_step_and_saves(tmp_path):
    atoms, sent = molecule("CH3CH2OH"), []

    def terminate(_results):
        if not sent:
            sent.append(signal.raise_signal(signal.SIGTERM))

    atoms.calc = Faulty(atoms, terminate, after=7)
    simulation = Simulation(atoms, MDSettings(), tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    assert not simulation.run(50)
    assert 0 < simulation.step < 10
    assert signal.getsignal(signal.SIGTERM) is handler
    atoms.calc = Faulty(atoms, infinite, after=1000)
    again = Simulation(atoms, MDSettings(), tmp_path)
    assert again.step == simulation.step
    assert again.run(50)


def test_in_a_thread_signals_are_left_alone(tmp_path):
    done = []
    atoms = copper()
    simulation = Simulation(atoms, MDSettings(), tmp_path)
    thread = threading.Thread(target=lambda: done.append(simulation.run(3)))
    thread.start()
    thread.join()
    assert done == [True]


def test_with_a_bundled_model(tmp_path):
    atoms = rattled(amplitude=0.02)
    atoms.calc = LKMCalculator("rmd17-ethanol", "cpu", "float64")
    simulation = Simulation(atoms, MDSettings("nve", log_every=1), tmp_path)
    assert simulation.run(40)
    assert all(abs(float(row["drift_meV_per_atom"])) < 1.0 for row in log(simulation))

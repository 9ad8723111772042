"""Constant pressure: volumes, degrees of freedom, cells that change, what is written."""

import csv
import json

import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io.jsonio import decode
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT
from matplotlib.figure import Figure

from lkm_calc import LKMCalculator, save_model
from lkm_calc.__main__ import main
from lkm_calc.graph import neighbours, skin
from lkm_calc.md.constant_pressure import CONSTANT_PRESSURE, pressure
from lkm_calc.md.ensembles import MDSettings, conserved_energy, make_dynamics, set_velocities
from lkm_calc.md.plots import plot_md
from lkm_calc.md.simulation import MDError, Simulation

from ..argon import ArgonCalculator, LennardJones, argon, sampled_volumes
from ..springs import PairSprings, spring_molecule
from ..support import crystal, small_model

KELVIN, BAR = 40.0, 2000.0


def settings(ensemble, **changes):
    values = {"temperature": KELVIN, "pressure": BAR, "timestep": 8.0, "damping": 300.0}
    values |= {"pressure_damping": 2000.0, "log_every": 1, "frame_every": 10}
    return MDSettings(ensemble, **(values | changes))


def dynamics(ensemble, seed=0, **changes):
    """Return an integrator that is ready to run, without a folder."""
    choice, rng = settings(ensemble, **changes), np.random.default_rng(seed)
    atoms = argon()
    free = 3 * len(atoms) - 3
    set_velocities(atoms, choice, free, rng)
    return make_dynamics(atoms, choice, free, rng)


def columns(simulation):
    with simulation.record.log.open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    ("ensemble", "changes", "message"),
    [
        ("npt-isotropic", {"pressure": None}, "npt-isotropic needs a pressure in bar"),
        ("npt-flexible", {"pressure": float("nan")}, "pressure is nan; it must be finite"),
        ("npt-flexible", {"pressure_damping": 0.0}, "pressure_damping is 0.0"),
        ("npt-flexible", {"temperature": 0.0}, "temperature is 0.0"),
        ("langevin", {}, "pressure is 2000.0 bar, but langevin has a fixed cell. Choose npt-iso"),
    ],
)
def test_settings_that_make_no_sense_are_refused(ensemble, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(ensemble, **changes)


@pytest.mark.parametrize("ensemble", CONSTANT_PRESSURE)
def test_structures_without_a_volume_are_refused(ensemble, tmp_path):
    slab = argon()
    slab.pbc = [True, True, False]
    for atoms in (spring_molecule(), slab):
        with pytest.raises(ValueError, match=f"{ensemble} needs a structure that is periodic"):
            Simulation(atoms, settings(ensemble), tmp_path)
    fixed = argon()
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="does not support constraints"):
        Simulation(fixed, settings(ensemble), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_calculator_without_stress_is_refused(tmp_path):
    atoms = argon()
    atoms.calc = PairSprings(atoms)
    with pytest.raises(MDError, match="npt-flexible needs a calculator with stress"):
        Simulation(atoms, settings("npt-flexible"), tmp_path).run(3)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def reference():
    return sampled_volumes(KELVIN, BAR, 200)[30:]


@pytest.mark.parametrize("ensemble", CONSTANT_PRESSURE)
def test_the_volume_is_that_of_the_ensemble(ensemble, reference):
    """At a pressure that is off by 500 bar it would be off by 2 %."""
    run, steps = dynamics(ensemble), 3000
    volumes, kelvin = np.empty(steps), np.empty(steps)
    for step in range(steps):
        run.run(1)
        volumes[step] = run.atoms.get_volume()
        kelvin[step] = 2 * run.atoms.get_kinetic_energy() / (93 * units.kB)
    kept = slice(steps // 6, None)
    assert volumes[kept].mean() == pytest.approx(reference.mean(), rel=0.005)
    # The volume of so cold a crystal swings for long before it forgets how far.
    assert 0.2 < volumes[kept].var() / reference.var() < 4
    assert kelvin[kept].mean() == pytest.approx(KELVIN, rel=0.08)


@pytest.mark.parametrize(("ensemble", "strains"), [("npt-isotropic", 1), ("npt-flexible", 6)])
def test_at_the_temperature_the_baths_neither_heat_nor_cool(ensemble, strains):
    """As ASE counts they would drive the atoms to 41.3 K, and a flexible cell to 60 K."""
    run, kt, moment = dynamics(ensemble), units.kB * KELVIN, 1e-3 * units.fs
    assert np.square(run._p / run.masses**0.5).sum() == pytest.approx(93 * kt)
    run._thermostat.integrate_nhc(run._p.copy(), moment)
    assert abs(run._thermostat._p_eta[0]) < 1e-6 * kt * moment
    momentum = np.array([[3.0, -1, 2], [-1, 1, 0.5], [2, 0.5, 4]])
    momentum *= (strains * run._barostat.W * kt / np.square(momentum).sum()) ** 0.5
    if strains == 1:
        momentum = float(np.linalg.norm(momentum))
    run._barostat.integrate_nhc_baro(momentum, moment)
    assert abs(run._barostat._p_xi[0]) < 1e-6 * kt * moment


def test_the_volume_goes_with_the_pressure_as_in_runs_at_fixed_volume(tmp_path):
    """Pressures of a thermostat at three volumes tell the volume at a pressure."""
    sizes, means = (5.25, 5.32, 5.39), []
    for length in sizes:
        choice = MDSettings("langevin", KELVIN, 8.0, friction=0.005, log_every=4, frame_every=500)
        simulation = Simulation(argon(length), choice, tmp_path / str(length))
        simulation.run(1200)
        means.append(columns(simulation)["pressure_bar"][50:].mean())
    curve = np.polynomial.Polynomial.fit(means, 8 * np.power(sizes, 3), 2)
    simulation = Simulation(argon(), settings("npt-isotropic", log_every=4), tmp_path / "npt")
    simulation.run(2500)
    found = columns(simulation)
    assert found["pressure_bar"][100:].mean() == pytest.approx(BAR, abs=150)
    assert found["volume_A3"][100:].mean() == pytest.approx(curve(BAR), rel=0.006)


@pytest.mark.parametrize("ensemble", CONSTANT_PRESSURE)
def test_what_the_ensemble_conserves_is_conserved(ensemble, tmp_path):
    drifts = []
    for timestep in (8.0, 4.0):
        choice = settings(ensemble, timestep=timestep, damping=100.0, pressure_damping=500.0)
        simulation = Simulation(argon(), choice, tmp_path / str(timestep))
        simulation.run(round(2400 / timestep))
        drifts.append(np.abs(columns(simulation)["drift_meV_per_atom"]).max())
    assert drifts[0] < 0.2
    assert drifts[1] < 0.35 * drifts[0], "of second order in the time step"


@pytest.mark.parametrize("ensemble", CONSTANT_PRESSURE)
def test_the_steps_are_those_of_ase(ensemble, tmp_path):
    """What watches over a run does not change it."""
    simulation = Simulation(argon(), settings(ensemble, seed=3), tmp_path)
    simulation.run(30)
    alone = dynamics(ensemble, seed=3)
    alone.run(30)
    assert isinstance(alone, IsotropicMTKNPT if ensemble == "npt-isotropic" else MTKNPT)
    assert np.array_equal(simulation.atoms.positions, alone.atoms.positions)
    assert np.array_equal(simulation.atoms.get_momenta(), alone.atoms.get_momenta())
    assert np.array_equal(simulation.atoms.cell, alone.atoms.cell)


@pytest.mark.parametrize("ensemble", CONSTANT_PRESSURE)
def test_what_is_conserved_is_what_ase_says(ensemble):
    run = dynamics(ensemble)
    run.atoms.calc = LKMCalculator(LennardJones(), "cpu")  # it has a free energy
    run.run(7)
    assert conserved_energy(run) == pytest.approx(run.get_conserved_energy(), rel=1e-12)


def test_the_isotropic_cell_keeps_its_shape_and_the_flexible_one_does_not_turn():
    shapes = {}
    for ensemble in CONSTANT_PRESSURE:
        run = dynamics(ensemble)
        first = run.atoms.cell.array.copy()
        run.run(200)
        strain = np.linalg.solve(first, run.atoms.cell.array)
        assert abs(np.linalg.det(strain) - 1) > 1e-3
        shapes[ensemble] = strain / np.cbrt(np.linalg.det(strain)) - np.eye(3)
        if ensemble == "npt-flexible":
            assert np.array_equal(run._p_g, run._p_g.T)
    assert np.abs(shapes["npt-isotropic"]).max() < 1e-14
    assert np.abs(np.diag(shapes["npt-flexible"])).max() > 1e-3
    assert np.abs(shapes["npt-flexible"][np.triu_indices(3, 1)]).max() > 1e-3


def test_the_log_of_a_periodic_structure_has_pressure_and_volume(tmp_path):
    simulation = Simulation(argon(), settings("npt-flexible"), tmp_path)
    simulation.run(20)
    found, atoms = columns(simulation), simulation.atoms
    assert found["volume_A3"][0] == pytest.approx(8 * 5.3**3)
    assert found["volume_A3"][-1] == atoms.get_volume()
    stress = atoms.get_stress()  # eV/Å³
    virial = -stress[:3].mean() * 1.602176634e6  # bar
    motion = 2 / 3 * atoms.get_kinetic_energy() / atoms.get_volume() * 1.602176634e6
    assert found["pressure_bar"][-1] == pytest.approx(virial + motion, rel=1e-6)
    frame = ase.io.read(tmp_path / "trajectory.traj", -1)
    assert np.array_equal(frame.cell, atoms.cell)
    assert np.abs(frame.get_stress() - stress).max() < 1e-12


def test_without_stress_the_log_has_the_volume_alone(tmp_path):
    atoms = argon()
    atoms.calc = PairSprings(atoms)
    Simulation(atoms, MDSettings("nve", log_every=1), tmp_path).run(2)
    last = (tmp_path / "log.csv").read_text().splitlines()[-1].split(",")
    assert last[-2:] == ["", repr(float(atoms.get_volume()))]


def test_the_log_of_a_molecule_has_neither(tmp_path):
    Simulation(spring_molecule(), MDSettings("nve", log_every=1), tmp_path).run(2)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0].endswith(",drift_meV_per_atom")
    assert {line.count(",") for line in lines} == {6}


def test_a_periodic_run_of_before_goes_on(tmp_path):
    """Its log has no pressure, its restart file neither pressure nor volume."""

    def make():
        atoms = argon()
        atoms.calc = ArgonCalculator()
        return atoms

    choice = MDSettings("bussi", KELVIN, 8.0, log_every=1)
    Simulation(make(), choice, tmp_path / "whole").run(9)
    Simulation(make(), choice, tmp_path / "parts").run(4)
    log, restart = tmp_path / "parts" / "log.csv", tmp_path / "parts" / "restart.json"
    log.write_text("".join(line.rsplit(",", 2)[0] + "\n" for line in log.open()))
    state = json.loads(restart.read_text())
    assert not {"pressure", "pressure_damping"} & set(state["identity"])
    del state["first_volume"], state["sha256"]
    state["format_version"] = 1
    state["files"]["log.csv"] |= {
        "size": log.stat().st_size,
        "head": log.read_bytes()[:48].hex(),
    }
    restart.write_text(json.dumps(state))
    Simulation(make(), choice, tmp_path / "parts").run(9)
    whole = (tmp_path / "whole" / "log.csv").read_text().splitlines()
    assert log.read_text().splitlines() == [line.rsplit(",", 2)[0] for line in whole]


def test_the_state_is_data(tmp_path):
    for ensemble in CONSTANT_PRESSURE:
        simulation = Simulation(argon(), settings(ensemble), tmp_path / ensemble)
        simulation.run(5)
        state = decode(simulation.record.restart.read_text(), always_array=False)["thermostat"]
        assert all(np.abs(state[name]).max() > 0 for name in ("eta", "p_eta", "xi", "p_xi"))
    assert state["p_cell"].shape == (3, 3)


@pytest.mark.parametrize("ensemble", CONSTANT_PRESSURE)
def test_a_cell_that_runs_away_stops_the_run(ensemble, tmp_path):
    torn = settings(ensemble, pressure=-1e4, frame_every=1)
    atoms = argon()
    with pytest.raises(MDError, match=r"the volume is \S+ Å³ and was 1191 Å³ initially|flew away"):
        Simulation(atoms, torn, tmp_path).run(5000)
    frames = ase.io.read(tmp_path / "trajectory.traj", ":")
    assert 1 < frames[-1].get_volume() / atoms.get_volume() < 10


def searches_of(monkeypatch, atoms, folder, steps):
    """Run, and count the neighbour searches of the kept list."""
    found = []

    def counted(*arguments):
        found.append(1)
        return neighbours.candidates(*arguments)

    monkeypatch.setattr(skin, "candidates", counted)
    Simulation(atoms, settings("npt-flexible", pressure=1e4), folder).run(steps)
    return len(found)


@pytest.mark.parametrize("parts", [(150,), (70, 150)])
def test_the_skin_stays_exact_in_a_cell_that_changes(parts, tmp_path, monkeypatch):
    for distance in (0.0, 0.4):
        for steps in parts:
            atoms = argon()
            atoms.calc = LKMCalculator(LennardJones(), "cpu", skin=distance)
            folder = tmp_path / str(distance)
            searches = searches_of(monkeypatch, atoms, folder, steps)
    assert 1 < searches < 0.7 * (parts[-1] - ([0, *parts][-2]))
    for name in ("log.csv", "restart.json"):
        assert (tmp_path / "0.0" / name).read_bytes() == (tmp_path / "0.4" / name).read_bytes()
    volumes = [frame.get_volume() for frame in ase.io.read(folder / "trajectory.traj", ":")]
    assert np.ptp(volumes) > 0.1 * volumes[0]


def test_cells_narrower_than_the_cutoff_are_no_obstacle(tmp_path):
    """A primitive cell of one atom is the crystal: its images count, however many."""
    atoms = bulk("Ar", "fcc", 5.3)
    atoms.calc = LKMCalculator(LennardJones(), "cpu")
    assert pressure(atoms) == pytest.approx(pressure(argon()), rel=1e-9)
    assert atoms.cell.lengths().max() < LennardJones().cutoff
    pair = atoms.repeat((2, 1, 1))
    pair.calc = atoms.calc
    assert Simulation(pair, settings("npt-isotropic"), tmp_path).run(20)


@pytest.mark.parametrize(("ensemble", "panels"), [("npt-flexible", 5), ("nose-hoover", 4)])
def test_the_picture_shows_pressure_and_a_volume_that_changes(
    ensemble, panels, tmp_path, monkeypatch
):
    held = {} if ensemble == "npt-flexible" else {"pressure": None}
    simulation = Simulation(argon(), settings(ensemble, **held), tmp_path)
    simulation.run(10)
    drawn, save = [], Figure.savefig

    def noted(figure, *arguments, **options):
        drawn.append(figure.axes)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    plot_md(simulation.record.log, tmp_path / "md.png", "argon")
    labels = [axes.get_ylabel() for axes in drawn[0]]
    assert len(labels) == panels
    assert labels[3] == "pressure, bar"
    assert labels[4:] == ["volume, Å³"] * (panels - 4)


def test_from_the_command_line(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    model = small_model()
    model.scale.mul_(0.01)
    save_model(model, "own.safetensors")
    crystal().write("crystal.xyz")
    arguments = ["md", "own.safetensors", "crystal.xyz", "--device", "cpu", "--log-every", "1"]
    arguments += ["--ensemble", "npt-flexible", "--pressure-damping", "300"]
    assert main([*arguments, "--steps", "8", "--output", "a"]) == 1
    assert "npt-flexible needs a pressure in bar" in caplog.text
    arguments += ["--pressure", "-50"]
    assert main([*arguments, "--steps", "8", "--output", "whole"]) == 0
    for steps in ("3", "8"):
        assert main([*arguments, "--steps", steps, "--output", "parts"]) == 0
    for name in ("log.csv", "trajectory.traj", "restart.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "whole" / "md.png").stat().st_size > 10_000
    assert main([*arguments[:-1], "-60", "--steps", "9", "--output", "parts"]) == 1
    assert "pressure was -50.0, is -60.0" in caplog.text

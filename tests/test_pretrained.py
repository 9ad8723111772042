"""The bundled models: their cards, their errors on the test frames, and MD with them."""

import json
import re

import ase.io
import numpy as np
import pytest
import torch
from ase import units
from ase.md import thermalize_momenta
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from lkm_calc import LKMCalculator, load_model
from lkm_calc.checkpoint import bundled_models, read_header
from train.__main__ import main
from train.config import config_from_table, read_config, to_table

from .support import FINITE_DIFFERENCE, ROOT, numerical_forces, rattled, relative_error, shared_data

FLOORS = {"rmd17-ethanol": (3.0, 12.0), "rmd17-aspirin": (20.0, 30.0)}
"""Energy MAE in meV and force MAE in meV/Å on test_01 that a bundled model must not exceed."""

bundled = pytest.mark.parametrize("name", sorted(FLOORS))


def molecule_of(name):
    if name == "rmd17-ethanol":
        return rattled(amplitude=0.05)
    atoms = ase.io.read(ROOT / "md_examples" / "aspirin.xyz")
    atoms.rattle(0.05, seed=0)
    return atoms


def test_the_bundled_models_are_these():
    assert set(bundled_models()) == set(FLOORS)
    for path in bundled_models().values():
        assert path.stat().st_size < 4_000_000


@bundled
def test_test_errors(name, capsys):
    molecule = name.removeprefix("rmd17-")
    data = shared_data(f"rmd17/rmd17_{molecule}_test_01.npz")
    assert main(["evaluate", name, str(data), "--device", "cpu"]) == 0
    errors = json.loads(capsys.readouterr().out)
    energy, forces = FLOORS[name]
    assert errors["energy_mae"] <= energy
    assert errors["force_mae"] <= forces
    told = read_header(bundled_models()[name])["provenance"]["test_errors"]
    assert errors["force_mae"] == pytest.approx(told["force_mae"], rel=1e-3)
    assert errors["energy_mae"] == pytest.approx(told["energy_mae"], rel=1e-2)


@bundled
def test_made_with_the_shipped_configuration(name):
    told = read_header(bundled_models()[name])["provenance"]["config"]
    told["data"]["train"] = "x.npz"
    told = to_table(config_from_table(told))  # options that came later, at their defaults
    path = ROOT / "train" / "configs" / f"{name}.toml"
    shipped = to_table(read_config(path, ["--data.train", "x.npz"]))
    for section in ("model", "loss", "optimiser"):
        assert told[section] == shipped[section]
    assert told["run"]["seed"] == shipped["run"]["seed"]


@bundled
def test_card(name):
    card = bundled_models()[name].with_suffix(".md").read_text(encoding="utf-8")
    told = read_header(bundled_models()[name])["provenance"]
    row = re.search(r"\| force MAE, meV/Å \| (\S+) \| (\S+) \|", card)
    assert float(row[2]) == pytest.approx(told["test_errors"]["force_mae"], abs=0.005)
    picture = re.search(r"\]\((\S+\.png)\)", card)[1]
    assert (bundled_models()[name].parent / picture).stat().st_size > 10_000


@bundled
def test_forces_are_the_gradient(name):
    model = load_model(name, dtype=torch.float64)
    atoms = molecule_of(name)
    forces = torch.from_numpy(LKMCalculator(model).evaluate([atoms])[0]["forces"])
    assert relative_error(forces, numerical_forces(model, atoms)) < FINITE_DIFFERENCE


@bundled
def test_relaxes_to_a_minimum_and_conserves_energy(name):
    atoms = molecule_of(name)
    atoms.calc = LKMCalculator(name, dtype="float64")
    assert BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
    Stationary(atoms)
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    energies = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()), interval=1)
    dynamics.run(100)
    assert np.ptp(energies) / len(atoms) < 2e-3


@bundled
def test_knows_its_elements_only(name):
    model = load_model(name)
    assert model.elements == ("H", "C", "O")
    with pytest.raises(ValueError, match="does not know N"):
        LKMCalculator(model).evaluate([rattled("HCN")])

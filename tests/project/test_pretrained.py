"""The bundled models: their cards, their errors on the test frames, and MD with them."""

import json
import re
from functools import partial
from pathlib import Path

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
from lkm_calc.__main__ import main as calc_main
from lkm_calc.potential.checkpoint import bundled_models, read_header
from train.__main__ import main
from train.config import read_config, to_table, told_of_old

from ..support import (
    FINITE_DIFFERENCE,
    ROOT,
    central_difference,
    graph_of,
    numerical_forces,
    relative_error,
    shared_data,
)

FLOORS = {
    "rmd17-aspirin": (2.18, 6.44),
    "rmd17-azobenzene": (0.68, 2.7),
    "rmd17-benzene": (0.053, 0.366),
    "rmd17-ethanol": (0.39, 2.39),
    "rmd17-malonaldehyde": (0.65, 3.82),
    "rmd17-naphthalene": (0.30, 1.46),
    "rmd17-paracetamol": (1.21, 4.8),
    "rmd17-salicylic": (0.74, 3.79),
    "rmd17-toluene": (0.36, 1.74),
    "rmd17-uracil": (0.46, 2.82),
}
"""Energy MAE in meV and force MAE in meV/Å on test_01 that a bundled model must not exceed."""

NAMES = ["chignolin-gfn2", "qm9-gfn2", "rmd17-base", *FLOORS]

bundled = pytest.mark.parametrize("name", NAMES)


def structure_of(name):
    return ase.io.read(bundled_models()[name].with_suffix(".xyz"))


def card_of(name):
    return bundled_models()[name].with_suffix(".md").read_text(encoding="utf-8")


def test_the_bundled_models_are_these():
    assert set(bundled_models()) == set(NAMES)
    for path in bundled_models().values():
        assert path.stat().st_size < 4_000_000


@pytest.mark.parametrize("name", FLOORS)
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


@pytest.mark.parametrize(("molecule", "bound"), [("aspirin", 12.5), ("benzene", 0.9)])
def test_test_errors_of_the_base(molecule, bound, capsys):
    data = shared_data(f"rmd17/rmd17_{molecule}_test_01.npz")
    assert main(["evaluate", "rmd17-base", str(data), "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["force_mae"] <= bound


@bundled
def test_made_with_the_shipped_configuration(name):
    """The last training on the card, and teachers need some before, has the options of the file."""
    provenance = read_header(bundled_models()[name])["provenance"]
    told = told_of_old(provenance["config"])
    told["data"]["train"] = provenance["files"]["train"]["name"]
    command = re.findall(r"lkm-train fit ((?:[^`\\\n]|\\\n)*)", card_of(name))[-1].replace(
        "\\\n", " "
    )
    config, *options = command.split()
    path = ROOT / "train" / "configs" / f"{Path(config).stem}.toml"
    shipped = to_table(read_config(path, options))
    for section in ("model", "loss", "optimiser"):
        assert told[section] == shipped[section]
    assert told["run"]["seed"] == shipped["run"]["seed"]
    assert told["data"]["train"] == Path(shipped["data"]["train"]).name


@bundled
def test_card(name):
    card = card_of(name)
    told = read_header(bundled_models()[name])["provenance"]
    row = re.search(r"\| force MAE, meV/Å \|.* (\S+) \|\n", card)
    errors = told.get("test_errors") or told["validation_errors"]
    assert float(row[1]) == pytest.approx(errors["force_mae"], abs=0.005)
    picture = re.search(r"\]\((\S+\.png)\)", card)[1]
    assert (bundled_models()[name].parent / picture).stat().st_size > 10_000


@bundled
def test_structure_is_a_minimum(name, capsys):
    atoms = structure_of(name)
    atoms.calc = LKMCalculator(name, dtype="float64")
    assert np.abs(atoms.get_forces()).max() < 0.02
    assert calc_main(["info", name]) == 0
    assert f"{name}.xyz" in capsys.readouterr().out


@pytest.mark.parametrize("name", FLOORS)
def test_forces_are_the_gradient(name):
    model = load_model(name, dtype=torch.float64)
    atoms = structure_of(name)
    atoms.rattle(0.05, seed=0)
    forces = torch.from_numpy(LKMCalculator(model).evaluate([atoms])[0]["forces"])
    assert relative_error(forces, numerical_forces(model, atoms)) < FINITE_DIFFERENCE


def test_forces_of_a_protein_are_the_gradient_along_random_directions():
    """It has too many coordinates for all of them."""
    name = "chignolin-gfn2"
    model = load_model(name, dtype=torch.float64)
    atoms = structure_of(name)
    atoms.rattle(0.05, seed=0)
    directions = np.random.default_rng(0).normal(size=(12, *atoms.positions.shape))

    def energy(displacement, direction):
        moved = atoms.copy()
        moved.positions += displacement * direction
        return model(graph_of(moved, model)).energy.item()

    slopes = [central_difference(partial(energy, direction=one)) for one in directions]
    forces = LKMCalculator(model).evaluate([atoms])[0]["forces"]
    expected = -(directions * forces).sum((1, 2))
    np.testing.assert_allclose(slopes, expected, atol=FINITE_DIFFERENCE * abs(expected).max())


@bundled
def test_relaxes_to_a_minimum_and_conserves_energy(name):
    atoms = structure_of(name)
    atoms.rattle(0.05, seed=0)
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
    assert set(model.elements) == set(structure_of(name).symbols)
    strange = next(e for e in ("N", "O", "F") if e not in model.elements)
    with pytest.raises(ValueError, match=f"does not support {strange}"):
        LKMCalculator(model).evaluate([ase.Atoms(["C", strange], [[0, 0, 0], [1.2, 0, 0]])])

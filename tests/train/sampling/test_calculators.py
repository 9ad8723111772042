"""Calculators by name."""

import re
import sys

import pytest
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces

from train.config import ConfigError
from train.sampling import make_calculator

NOT_CALCULATORS = {
    "pm7": "no calculator 'pm7'. Use gfn2-xtb, gfn1-xtb, or MODULE:NAME",
    "ase.calculators.emt": "no calculator 'ase.calculators.emt'",
    ":EMT": "no calculator ':EMT'",
    "no_such_module:EMT": "cannot be imported (ModuleNotFoundError: No module named",
    "ase.calculators.emt:EMTT": "cannot be imported (AttributeError",
    "math:pi": "is not a function or class",
    "math:sqrt": "cannot be created (TypeError",
    "builtins:dict": "returns a dict, not an ASE calculator",
    "no_such_file.py:EMT": "There is no file",
}


@pytest.mark.parametrize("name", NOT_CALCULATORS)
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match=re.escape(NOT_CALCULATORS[name])):
        make_calculator(name)


def test_a_calculator_without_forces_is_refused(tmp_path):
    path = tmp_path / "energies_only.py"
    path.write_text(
        "from ase.calculators.calculator import Calculator\n"
        "class Energies(Calculator):\n"
        "    implemented_properties = ['energy']\n"
    )
    with pytest.raises(ConfigError, match="does not compute forces"):
        make_calculator(f"{path}:Energies")


def test_modules_and_files(tmp_path):
    path = tmp_path / "own_calculator.py"
    path.write_text(
        "from ase.calculators.emt import EMT\ndef make():\n    return EMT(fixed_cutoff=True)\n"
    )
    for name in ("ase.calculators.emt:EMT", f"{path}:make"):
        assert type(make_calculator(name)).__name__ == "EMT"


@pytest.mark.parametrize("name", ["gfn2-xtb", "gfn1-xtb"])
def test_xtb(name):
    pytest.importorskip("tblite")
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=0)
    atoms.calc = make_calculator(name)
    numerical = calculate_numerical_forces(atoms, eps=1e-3)
    assert atoms.get_forces() == pytest.approx(numerical, abs=5e-3)
    assert abs(numerical).max() > 0.5


def test_without_tblite(monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(ConfigError, match=r"needs tblite: pip install lkm-calc\[label\]"):
        make_calculator("gfn2-xtb")

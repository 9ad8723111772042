"""The data of a base model: molecules that are left out are left out."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from benchmarks.base import without
from benchmarks.cheap_frames import molecules
from train.data import DataError, Frames


def frames_of(*names):
    parts = []
    for name in names:
        atoms = molecule(name)
        positions = atoms.positions[None]
        parts.append(Frames.of_one_molecule(atoms.numbers, positions, np.zeros(1), positions))
    return Frames.joined(parts)


def test_molecules_with_an_excluded_formula_are_left_out():
    """Dimethyl ether has the formula of ethanol; CF4 has another element."""
    given = frames_of("CH3OCH3", "CH3OH", "CF4", "CH3CH2OH", "C2H6")
    kept = molecules(given, [frames_of("CH3CH2OH")])
    found = [kept.atoms(k).get_chemical_formula() for k in range(len(kept))]
    assert found == ["CH4O", "C2H6"]
    with pytest.raises(DataError, match="No molecule"):
        molecules(frames_of("CH3OCH3", "CF4"), [frames_of("CH3CH2OH")])


def test_files_of_a_molecule_are_left_out():
    benzene, azobenzene = (Path(f"rmd17_{name}_train_01.npz") for name in ("benzene", "azobenzene"))
    assert without("benzene", [benzene, azobenzene]) == [azobenzene]
    assert without(None, [benzene, azobenzene]) == [benzene, azobenzene]

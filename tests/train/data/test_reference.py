from dataclasses import replace

import ase
import numpy as np
import pytest

from train.data.frames import Frames
from train.data.free_atoms import FREE_ATOMS
from train.data.reference import fit_reference_energies


def test_reference_energies_of_several_compositions_are_exact():
    counts = np.array([[2, 0, 1], [4, 1, 0], [2, 2, 1], [3, 1, 2]])
    expected = np.array([-13.6, -1030.25, -2041.5])
    numbers = np.concatenate([np.repeat([1, 6, 8], row) for row in counts])
    starts = np.concatenate([[0], counts.sum(1).cumsum()])
    xyz = np.zeros((len(numbers), 3))
    frames = Frames(numbers=numbers, positions=xyz, energies=counts @ expected, starts=starts)
    elements, energies, rank, residuals, _ = fit_reference_energies(frames)
    assert elements == [1, 6, 8]
    np.testing.assert_allclose(energies, expected, rtol=1e-12)
    assert rank == 3
    assert np.abs(residuals).max() < 1e-9


def test_reference_energies_of_one_composition_give_its_mean():
    numbers = np.tile([8, 1, 1], 3)
    xyz = np.zeros((9, 3))
    labels = np.array([-2081.0, -2082.0, -2084.5])
    frames = Frames(numbers=numbers, positions=xyz, energies=labels, starts=np.arange(4) * 3)
    elements, energies, rank, residuals, _ = fit_reference_energies(frames)
    assert elements == [1, 8]
    assert 2 * energies[0] + energies[1] == pytest.approx(-2082.5, abs=1e-9)
    assert rank == 1
    np.testing.assert_allclose(residuals, [1.5, 0.5, -2.0], atol=1e-9)


def molecules(energies, *formulas):
    """Return frames of such compositions, which is all that the fit looks at."""
    numbers = [ase.Atoms(formula).numbers for formula in formulas]
    flat = np.concatenate(numbers).astype(np.int64)
    return Frames(
        numbers=flat,
        positions=np.zeros((len(flat), 3)),
        energies=np.array(energies),
        starts=np.concatenate([[0], np.cumsum([len(one) for one in numbers])]),
    )


def test_undetermined_energies_have_their_natural_size():
    """With the least norm ethanol had H −616, C −205 and O −103 eV."""
    genuine = {"PBE": -4209.6, "GFN2-xTB": -309.5658}  # of rMD17 and the bundled frames
    natural = {"PBE": (-13.6, -1028.4, -2040.8), "GFN2-xTB": (-10.7, -48.8, -102.5)}
    for method, energy in genuine.items():
        fit = fit_reference_energies(molecules([energy], "C2H6O"))
        assert method in fit.level
        assert fit.energies @ np.array([6, 2, 1]) == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(fit.energies, natural[method], atol=6)


def test_energies_from_free_atoms_and_of_unknown_methods_keep_their_sum():
    vasp = fit_reference_energies(molecules([-46.6], "C2H6O"))
    np.testing.assert_allclose(vasp.energies, -46.6 / 9, atol=1e-9)
    assert vasp.level == "energies counted from free atoms"
    odd = fit_reference_energies(molecules([-1.05 * 4300], "C2H6O"))  # far from every table
    assert odd.energies @ np.array([6, 2, 1]) == pytest.approx(-4515, abs=1e-9)
    assert odd.level.startswith("free atoms with all electrons (PBE) times 1.0")
    assert odd.energies[2] < odd.energies[1] < odd.energies[0] < 0


def test_mixed_compositions_of_too_low_rank_deviate_least_from_free_atoms():
    rng = np.random.default_rng(0)
    formulas = ["C2H6O", "C2H6O", "C4H12O2", "C3H8O", "C5H12O"]
    atoms = {1: -13.59, 6: -1028.37, 8: -2040.82}
    sums = np.array([sum(atoms[z] for z in ase.Atoms(f).numbers) for f in formulas])
    sizes = np.array([len(ase.Atoms(f)) for f in formulas])
    frames = molecules(sums - 3.7 * sizes + rng.normal(0, 0.1, 5), *formulas)
    fit = fit_reference_energies(frames)
    assert fit.rank == 2
    np.testing.assert_allclose(fit.energies, [atoms[z] - 3.7 for z in (1, 6, 8)], atol=0.2)
    counts = np.array([[np.sum(ase.Atoms(f).numbers == z) for z in (1, 6, 8)] for f in formulas])
    plain = np.linalg.lstsq(counts.astype(float), frames.energies, rcond=None)[0]
    np.testing.assert_allclose(fit.residuals, frames.energies - counts @ plain, atol=1e-8)


def test_known_isolated_atoms_go_before_tables():
    own = {1: -11.0, 6: -900.0, 8: -1900.0}
    energy = 6 * own[1] + 2 * own[6] + own[8] - 9 * 2.0
    fit = fit_reference_energies(molecules([energy], "C2H6O"), own)
    np.testing.assert_allclose(fit.energies, [own[z] - 2.0 for z in (1, 6, 8)], atol=1e-9)


def test_other_properties_are_shared_equally():
    frames = replace(molecules([9.0], "C2H6O"), energy_unit="Debye")
    np.testing.assert_allclose(fit_reference_energies(frames).energies, 1.0, atol=1e-12)


def test_tables_of_free_atoms_are_complete():
    """He, Ne, Ar: PBE values of complete basis sets; xTB and valence ones of their sources."""
    for table in FREE_ATOMS.values():
        assert len(table) == 94
        assert np.isfinite(table[:86]).sum() >= 86
    pbe = np.array(FREE_ATOMS["free atoms with all electrons (PBE)"]) / 27.211386
    assert np.all(np.diff(pbe) < 0)
    for number, hartree in ((2, -2.8929), (10, -128.8664), (18, -527.3456)):
        assert pbe[number - 1] == pytest.approx(hartree, abs=5e-3)

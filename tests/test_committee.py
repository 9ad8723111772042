"""Committees: the mean of what each computes alone, and how far they differ."""

import pickle

import numpy as np
import pytest
import torch
from ase.calculators.fd import calculate_numerical_forces

from lkm_calc import LKMCalculator, committee, save_model
from lkm_calc.compile.programs import ProgramForces

from .compile.test_programs import programs_for, stand_in
from .support import FINITE_DIFFERENCE, assert_same_numbers, crystal, rattled, small_model


def members():
    """Return models of different architectures, cut-offs and weights."""
    return [
        small_model(),
        small_model("pamnet", seed=1, cutoff=4.0),
        small_model("mxmnet", seed=2, cutoff=4.5),
    ]


@pytest.mark.parametrize("skin", [0.0, 0.5])
@pytest.mark.parametrize("atoms", [rattled(), crystal()], ids=["molecule", "crystal"])
def test_mean_and_spread_of_what_each_computes_alone(atoms, skin):
    calc = LKMCalculator(members(), skin=skin)
    calc.calculate(atoms)
    alone = [LKMCalculator(model) for model in members()]
    for one in alone:
        one.calculate(atoms)
    assert calc.results.keys() == alone[0].results.keys()
    assert type(calc.results["energy"]) is float
    for name, found in calc.results.items():
        expected = np.mean([one.results[name] for one in alone], axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14, err_msg=name)
    energies = np.array([one.results["energy"] for one in alone])
    assert calc.extras["energy_std"] == pytest.approx(
        np.sqrt(((energies - energies.mean()) ** 2).mean()), rel=1e-12
    )
    forces = np.array([one.results["forces"] for one in alone])
    off = forces - forces.mean(0)
    np.testing.assert_allclose(calc.extras["forces_std"], np.sqrt((off**2).mean(0)), rtol=1e-10)
    spread = np.sqrt((off**2).sum(2).mean(0))
    np.testing.assert_allclose(calc.extras["force_spread"], spread, rtol=1e-10)
    assert spread.shape == (len(atoms),)
    assert spread.min() > 1e-3
    assert ("stress_std" in calc.extras) == atoms.pbc.all()
    if atoms.pbc.all():
        stress = np.std([one.results["stress"] for one in alone], axis=0)
        np.testing.assert_allclose(calc.extras["stress_std"], stress, rtol=1e-10)


def test_forces_are_the_gradient_of_the_mean():
    atoms = rattled("H2O")
    atoms.calc = LKMCalculator(members())
    forces = atoms.get_forces()
    numerical = calculate_numerical_forces(atoms, eps=1e-5)
    assert np.abs(forces - numerical).max() < FINITE_DIFFERENCE * np.abs(forces).max()


def test_force_spread_turns_with_nothing():
    atoms = rattled()
    calc = LKMCalculator(members())
    calc.calculate(atoms)
    before = calc.extras["force_spread"]
    atoms.rotate(50, (1, 2, 3))
    calc.calculate(atoms)
    np.testing.assert_allclose(calc.extras["force_spread"], before, rtol=1e-8)


def test_models_that_are_equal_do_not_differ():
    calc = LKMCalculator([small_model(), small_model()])
    calc.calculate(rattled())
    assert calc.results["energy"] == LKMCalculator(small_model()).get_potential_energy(rattled())
    for name, value in calc.extras.items():
        assert not np.any(value), name


def test_one_of_a_list_is_a_plain_calculator(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(small_model(), path)
    plain, listed = LKMCalculator(path), LKMCalculator([path])
    for calc in (plain, listed):
        calc.calculate(crystal())
        assert not calc.extras.keys() & {"energy_std", "forces_std", "force_spread", "stress_std"}
    for name, value in plain.results.items():
        assert np.array_equal(listed.results[name], value), name
    assert listed.model is listed.models[0]


def test_members_by_name_by_path_and_as_objects(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(small_model(), path)
    calc = LKMCalculator(["rmd17-ethanol", path, small_model(seed=1)], dtype="float32")
    assert [model.dtype for model in calc.models] == [torch.float32] * 3
    assert np.isfinite(calc.get_forces(rattled())).all()
    with pytest.raises(AttributeError, match="3 models; use the attribute models"):
        _ = calc.model


def test_extras_belong_to_the_results():
    atoms = rattled()
    atoms.calc = calc = LKMCalculator(members())
    assert calc.extras == {}
    atoms.get_forces()
    kept = calc.extras
    first = kept["force_spread"].copy()
    atoms.rattle(0.05)
    assert calc.get_property("energy", atoms, allow_calculation=False) is None
    assert calc.extras == {}
    atoms.get_forces()
    assert np.array_equal(kept["force_spread"], first)
    assert not np.array_equal(calc.extras["force_spread"], first)
    assert atoms.get_properties(["energy"])["energy"] == calc.results["energy"]


def test_extras_are_sent_without_embeddings():
    calc = LKMCalculator(members())
    calc.calculate(rattled())
    sent = pickle.dumps(calc._extras)  # calc.extras is read by the type checks of the tests
    assert b"torch" not in sent
    assert pickle.loads(sent).keys() == calc.extras.keys()
    for name, value in pickle.loads(sent).items():
        assert np.array_equal(value, calc.extras[name]), name


def test_many_at_once_with_their_extras():
    calc = LKMCalculator(members())
    structures = [rattled(), crystal(), rattled("H2O"), rattled(seed=1)]
    many = list(calc.iterate(structures, batch_size=3))
    for atoms, (results, extras) in zip(structures, many, strict=True):
        calc.calculate(atoms)
        for found, expected in ((results, calc.results), (extras, calc.extras)):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-8, atol=1e-10, err_msg=name)
    for (results, _), alone in zip(many, calc.evaluate(structures, batch_size=3), strict=True):
        assert results["energy"] == alone["energy"]


def test_elements_that_all_know():
    first, second = small_model(), small_model(seed=1)
    first.calibrate(1.0, {}, [1, 6, 8])
    second.calibrate(1.0, {}, [1, 7, 8])
    calc = LKMCalculator([first, second])
    assert np.isfinite(calc.get_potential_energy(rattled("H2O")))
    with pytest.raises(ValueError, match="does not support C: it was trained on H, N, O"):
        calc.get_potential_energy(rattled())
    with pytest.raises(ValueError, match="does not support N: it was trained on H, C, O"):
        calc.evaluate([rattled("H2O"), rattled("NH3")])
    second.calibrate(1.0, {}, [7])
    with pytest.raises(ValueError, match=r"no element in common \(H, C, O; N\)"):
        LKMCalculator([first, second])


def test_extras_are_computed_when_they_are_read(monkeypatch):
    calls, inner = [], committee.Committee._extras

    def count(*arguments):
        calls.append(1)
        return inner(*arguments)

    monkeypatch.setattr(committee.Committee, "_extras", count)
    calc, atoms = LKMCalculator(small_model()), rattled()
    calc.calculate(atoms)
    calc.evaluate([rattled(), rattled("H2O")])
    assert calls == []
    kept = calc.extras
    expected = LKMCalculator(small_model())
    expected.calculate(atoms)
    before = dict(expected.extras)
    atoms.positions += 0.1 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    atoms.numbers[-1] = 8
    calc.calculate(atoms)
    for _ in range(2):
        assert repr(kept) == repr(before)  # still those of the structure as it was
        assert len(calls) == 2  # each computed once


def test_committees_that_cannot_be():
    with pytest.raises(ValueError, match="list of models is empty"):
        LKMCalculator([])
    other = small_model()
    other.provenance["energy_unit"] = "D"
    with pytest.raises(ValueError, match="predicts a property in D"):
        LKMCalculator([small_model(), other])


def test_each_member_has_a_program_of_its_own(monkeypatch):
    monkeypatch.setattr(ProgramForces, "_is_faster", lambda *arguments: True)
    monkeypatch.setattr(ProgramForces, "_make", stand_in)
    monkeypatch.setattr(committee, "force_function", programs_for)
    quick, plain = LKMCalculator(members(), compile=True), LKMCalculator(members())
    for seed in range(2):
        atoms = rattled(seed=seed, amplitude=0.02)
        quick.calculate(atoms)
        plain.calculate(atoms)
        assert not quick.ordinary
        assert_same_numbers(quick, plain)
    assert plain.ordinary

import warnings

import ase
import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from lkm_calc import MODELS, LKMCalculator, compiled, save_model

from .support import FINITE_DIFFERENCE, crystal, rattled, small_model


@pytest.fixture(params=sorted(MODELS))
def calc(request):
    return LKMCalculator(small_model(request.param), device="cpu")


def test_every_result_has_ases_type_and_unit(calc):
    atoms = rattled()
    atoms.calc = calc
    energy = atoms.get_potential_energy()
    assert type(energy) is float
    assert atoms.get_potential_energy(force_consistent=True) == energy
    assert atoms.get_forces().shape == (9, 3)
    assert atoms.get_forces().dtype == np.float64
    assert atoms.get_potential_energies().sum() == pytest.approx(energy, abs=1e-10)
    properties = atoms.get_properties(["energy", "forces", "energies", "free_energy"])
    assert properties["energy"] == energy


def test_forces_against_central_differences(calc):
    atoms = rattled("H2O")
    atoms.calc = calc
    forces = atoms.get_forces()
    numerical = calculate_numerical_forces(atoms, eps=1e-5)
    assert np.abs(forces - numerical).max() < FINITE_DIFFERENCE * np.abs(forces).max()


@pytest.mark.parametrize("pbc", [[True, True, True], [True, True, False]])
def test_stress_is_voigt_in_ev_per_cubic_angstrom(calc, pbc):
    atoms = crystal(pbc=pbc)
    atoms.calc = calc
    stress = atoms.get_stress()
    assert stress.shape == (6,)
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert np.abs(stress - numerical).max() < FINITE_DIFFERENCE * np.abs(stress).max()


def test_stress_of_a_molecule_is_refused(calc):
    atoms = rattled()
    atoms.calc = calc
    with pytest.raises(PropertyNotImplementedError, match="three cell vectors"):
        atoms.get_stress()


def test_computes_once_for_all_properties(calc, monkeypatch):
    calls = []
    inner = calc.evaluate
    monkeypatch.setattr(calc, "evaluate", lambda *a: calls.append(1) or inner(*a))
    atoms = rattled()
    atoms.calc = calc
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.get_potential_energies()
    assert len(calls) == 1
    atoms.set_initial_charges(np.ones(len(atoms)))
    atoms.get_forces()
    assert len(calls) == 1, "the model reads no charges"
    atoms.positions[0, 0] += 1e-3
    atoms.get_forces()
    assert len(calls) == 2


def test_results_are_copies(calc):
    atoms = rattled()
    atoms.calc = calc
    atoms.get_forces()[:] = 0
    assert atoms.get_forces().any()


def test_many_at_once_equals_one_by_one(calc):
    structures = [rattled(seed=s) for s in range(5)] + [crystal(), rattled("C6H6")]
    many = calc.evaluate(structures, batch_size=3)
    for atoms, result in zip(structures, many, strict=True):
        single = calc.evaluate([atoms])[0]
        assert result.keys() == single.keys()
        for key in result:
            np.testing.assert_allclose(result[key], single[key], rtol=1e-10, atol=1e-10)
    assert calc.evaluate([]) == []


def test_unknown_elements_are_refused_by_name():
    model = small_model()
    model.calibrate(1.0, {}, [1, 6, 8])
    atoms = ase.Atoms("HCl", [[0, 0, 0], [1.3, 0, 0]], calculator=LKMCalculator(model))
    with pytest.raises(ValueError, match="does not know Cl: it was trained on H, C, O"):
        atoms.get_potential_energy()


def test_exploded_structure_is_refused(calc):
    atoms = rattled()
    atoms.positions[2, 1] = np.nan
    atoms.calc = calc
    with pytest.raises(ValueError, match=r"positions is not finite in row\(s\) \[2\]"):
        atoms.get_forces()


def test_dtype_choice(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(small_model(), path)
    forces = {}
    for dtype in ("float32", "float64", None):
        calc = LKMCalculator(path, dtype=dtype)
        forces[dtype] = calc.evaluate([rattled()])[0]["forces"]
        assert forces[dtype].dtype == np.float64
    assert np.array_equal(forces[None], forces["float64"])
    difference = np.abs(forces["float32"] - forces["float64"]).max()
    assert 0 < difference < 1e-4 * np.abs(forces["float64"]).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "half"}, "dtype is 'half'; choose 'float32'"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_unusable_choices(options, message):
    with pytest.raises(ValueError, match=message):
        LKMCalculator(small_model(), **options)


def test_two_calculators_do_not_disturb_each_other_or_torch():
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    route = torch.backends.mkldnn.matmul.fp32_precision
    single, double = (LKMCalculator(small_model(), dtype=d) for d in ("float32", "float64"))
    first = double.evaluate([rattled()])[0]["energy"]
    single.evaluate([rattled()])
    assert double.evaluate([rattled()])[0]["energy"] == first
    assert before == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    assert torch.backends.mkldnn.matmul.fp32_precision == route


def test_relaxation_lowers_the_energy():
    model = small_model()
    atoms = rattled("H2O")
    atoms.calc = LKMCalculator(model)
    start = atoms.get_potential_energy()
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=20)
    assert atoms.get_potential_energy() < start


def test_conserves_energy_with_random_weights():
    # A smooth potential of any shape conserves energy: the error shrinks with the step squared.
    def spread(step_fs):
        atoms = rattled()
        model = small_model()
        model.scale.fill_(0.02)  # forces of a few eV/Å
        atoms.calc = LKMCalculator(model)
        assert 0.5 < np.abs(atoms.get_forces()).max() < 20
        dynamics = VelocityVerlet(atoms, step_fs * units.fs)
        energies = []
        dynamics.attach(lambda: energies.append(atoms.get_total_energy()), 1)
        dynamics.run(round(10 / step_fs))
        return np.ptp(energies)

    assert spread(0.1) < 0.35 * spread(0.2)


def test_no_warnings_and_no_gradients_in_use(calc):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms = rattled()
        atoms.calc = calc
        with torch.no_grad():
            assert atoms.get_forces().any()
        atoms.rattle(0.01)
        with torch.inference_mode():
            assert atoms.get_forces().any()


def test_evaluate_refuses_what_it_cannot_do(calc):
    with pytest.raises(ValueError, match=r"write \[atoms\]"):
        calc.evaluate(rattled())
    with pytest.raises(ValueError, match="batch_size is 0"):
        calc.evaluate([rattled()], batch_size=0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_structure_beyond_the_memory_is_named(error, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(compiled, "energy_and_forces", fail)
    with pytest.raises(MemoryError, match=r"9 atoms with 72 pairs within 5 Å .* on cpu"):
        LKMCalculator(small_model()).calculate(rattled())

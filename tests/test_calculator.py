import warnings
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from lkm_calc import MODELS, LKMCalculator, save_model
from lkm_calc.calculator import _sources
from lkm_calc.compile import protocol

from .support import FINITE_DIFFERENCE, crystal, rattled, small_model, warnings_as_errors


@pytest.fixture(params=sorted(MODELS))
def calc(request):
    return LKMCalculator(small_model(request.param), device="cpu")


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
    with pytest.raises(ValueError, match="does not support Cl: it was trained on H, C, O"):
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


def global_state():
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.random.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        warnings.filters[:],
        np.geterr(),
    )


def test_two_calculators_do_not_disturb_each_other_or_torch_or_their_model():
    model = small_model().train()
    before = global_state()
    double, single = (LKMCalculator(model, dtype=d) for d in ("float64", "float32"))
    first = double.get_potential_energy(rattled())
    assert single.get_potential_energy(rattled()) != first
    again = double.evaluate([rattled()])[0]["energy"]
    assert again == first
    assert before == global_state()
    assert (model.training, model.dtype) == (True, torch.float64)
    assert all(weight.requires_grad for weight in model.parameters())
    with torch.no_grad():
        model.scale.mul_(2)
    assert double.evaluate([rattled()])[0]["energy"] == first, "a copy was made"


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
    with warnings_as_errors():
        atoms = rattled()
        atoms.calc = calc
        with torch.no_grad():
            assert atoms.get_forces().any()
        atoms.rattle(0.01)
        with torch.inference_mode():
            assert atoms.get_forces().any()
            made_there = LKMCalculator(calc.model)
        assert np.array_equal(made_there.get_forces(atoms), atoms.get_forces())


def test_evaluate_refuses_what_it_cannot_do(calc):
    for way in (calc.evaluate, calc.iterate):
        with pytest.raises(ValueError, match=r"pass \[atoms\]"):
            way(rattled())
        with pytest.raises(ValueError, match="batch_size is 0"):
            way([rattled()], batch_size=0)


def test_structures_are_taken_batch_by_batch_and_results_given_as_soon():
    taken = []

    def source():
        for seed in range(7):
            taken.append(seed)
            yield rattled("H2O", seed)

    found = LKMCalculator(small_model()).iterate(source(), batch_size=3)
    assert taken == []
    next(found)
    assert len(taken) == 3
    for _ in range(3):
        next(found)
    assert len(taken) == 6
    assert len(list(found)) == 3


def test_progress_is_shown_on_request(capsys):
    calc = LKMCalculator(small_model())
    calc.evaluate([rattled("H2O")] * 3, batch_size=2)
    assert capsys.readouterr().err == ""
    calc.evaluate([rattled("H2O")] * 3, batch_size=2, progress=True)
    assert "3/3" in capsys.readouterr().err


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.fixture(params=OUT_OF_MEMORY, ids=["GPU", "CPU", "driver", "cuBLAS"])
def room_for(request, monkeypatch):
    """Return a function that sets how many atoms fit into the memory, and lists what is tried."""
    inner = protocol.energy_and_forces

    def set_room(atoms):
        tried = []

        def compute(model, graph, **options):
            tried.append(len(graph.numbers))
            if len(graph.numbers) > atoms:
                raise request.param
            return inner(model, graph, **options)

        monkeypatch.setattr(protocol, "energy_and_forces", compute)
        return tried

    return set_room


def test_a_batch_beyond_the_memory_is_halved_with_one_warning(room_for):
    structures = [rattled("H2O", seed) for seed in range(11)]
    calc = LKMCalculator(small_model())
    expected = [calc.get_forces(atoms) for atoms in structures]
    tried = room_for(atoms=6)
    with pytest.warns(UserWarning, match="batch of 8 is too large: 24 atoms .* at most 4") as told:
        found = calc.evaluate(structures, batch_size=8)
    assert len(told) == 1
    assert tried == [24, 12, 6, 6, 6, 6, 6, 3]
    for result, forces in zip(found, expected, strict=True):
        np.testing.assert_allclose(result["forces"], forces, rtol=0, atol=1e-10)


def test_a_structure_beyond_the_memory_is_named(room_for):
    room_for(atoms=5)
    calc = LKMCalculator(small_model())
    with pytest.raises(MemoryError, match=r"9 atoms with 72 pairs within 5 Å .* memory of cpu"):
        calc.calculate(rattled())
    with pytest.warns(UserWarning, match="at most 1"), pytest.raises(MemoryError, match="9 atoms"):
        calc.evaluate([rattled(), rattled()])


def test_a_zbl_core_acts_below_the_data_only():
    model = small_model()
    plain = LKMCalculator(model, "cpu")
    with pytest.warns(UserWarning, match="of the covalent radii"):
        kept_apart = LKMCalculator(model, "cpu", zbl=True)
    apart = rattled()
    for name in ("energy", "forces"):
        assert np.array_equal(kept_apart.get_property(name, apart), plain.get_property(name, apart))
    close = ase.Atoms("H2", positions=[[0, 0, 0], [0.2, 0, 0]])
    difference = kept_apart.get_potential_energy(close) - plain.get_potential_energy(close)
    assert difference > 10


def test_deterministic_leaves_no_setting_behind():
    seen = []
    model = small_model()
    calc = LKMCalculator(model, "cpu", deterministic=True)
    forward = calc.model.forward
    calc.model.forward = lambda graph: (
        seen.append(torch.are_deterministic_algorithms_enabled()) or forward(graph)
    )
    calc.get_potential_energy(rattled())
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "model", [None, 5, b"rmd17-ethanol", {"a": "rmd17-ethanol"}, torch.nn.Linear(1, 1), [None]]
)
def test_what_is_no_model_is_named(model):
    # Not through LKMCalculator, whose arguments' types the tests check before it sees them.
    with pytest.raises(TypeError, match=r"model is .*; pass the name of a bundled model, the path"):
        _sources(model)


def test_models_and_committees_are_told_apart():
    model, path = small_model(), Path("a.safetensors")
    for one in (model, path, "rmd17-ethanol"):
        assert _sources(one) == [one]
    for several in ([model, path], (model, path), iter([model, path])):
        assert _sources(several) == [model, path]
    assert _sources(torch.nn.ModuleList([model, model])) == [model, model]

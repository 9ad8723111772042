"""The interface to torch-sim: its own conformance tests, our numbers, its integrators."""

import ase
import numpy as np
import pytest
import torch
from ase.stress import voigt_6_to_full_3x3_stress

from lkm_calc import LKMCalculator, with_zbl
from lkm_calc.compile.kernel_forces import KernelForces

from .support import ROUND_OFF, SMALL, crystal, rattled, relative_error, small_model

ts = pytest.importorskip("torch_sim", reason="torch-sim is not installed (needs Python 3.12)")
from torch_sim.models.interface import validate_model_outputs  # noqa: E402
from torch_sim.testing import (  # noqa: E402
    SIMSTATE_BULK_GENERATORS,
    SIMSTATE_MOLECULE_GENERATORS,
    ModelTolerance,
    assert_model_calculator_consistency,
)

from lkm_calc.torchsim import LKMTorchSimModel  # noqa: E402

CPU = torch.device("cpu")
FEMTOSECOND = 1e-3 * ts.units.MetalUnits.time
KELVIN = ts.units.MetalUnits.temperature


def state_of(structures, pbc=None):
    """Return a state with each structure's own periodicity, or the given one."""
    boxed = [atoms.copy() for atoms in structures]
    for atoms in boxed:
        atoms.pbc = True
    state = ts.io.atoms_to_state(boxed, CPU, torch.float64)
    state.pbc = torch.tensor(np.array([a.pbc for a in structures]) if pbc is None else pbc)
    return state


def wrapped(name="dimenet++", **options):
    return LKMTorchSimModel(small_model(name), "cpu", **options)


def kernel_used(model):
    return model._forces.used


@pytest.fixture(scope="module")
def _kernels(tmp_path_factory):
    """Keep kernels, which take the compiler ten seconds each, and take them, faster or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LKM_CACHE", str(tmp_path_factory.mktemp("kernels")))
        patch.setattr(KernelForces, "_is_faster", lambda *arguments: True)
        yield


compiled_too = pytest.mark.parametrize("compile", [False, True], ids=["", "compiled"])
pytestmark = pytest.mark.usefixtures("_kernels")


@compiled_too
@pytest.mark.parametrize("name", SMALL)
def test_torch_sims_conformance_test(name, compile):
    model = wrapped(name, compile=compile)
    validate_model_outputs(model, CPU, torch.float64)
    assert kernel_used(model) == compile


def test_conformance_of_float32_weights():
    model = LKMTorchSimModel(small_model(), "cpu", "float32")
    assert (model.dtype, model.model.dtype) == (torch.float64, torch.float32)
    validate_model_outputs(model, CPU, model.dtype)


@compiled_too
@pytest.mark.parametrize("system", [*SIMSTATE_BULK_GENERATORS, *SIMSTATE_MOLECULE_GENERATORS])
def test_torch_sims_consistency_test(system, compile):
    model = small_model()
    bulk = SIMSTATE_BULK_GENERATORS.get(system)
    state = (bulk or SIMSTATE_MOLECULE_GENERATORS[system])(CPU, torch.float64)
    tight = ModelTolerance.VERY_TIGHT
    assert_model_calculator_consistency(
        LKMTorchSimModel(model, "cpu", compile=compile, compute_stress=bulk is not None),
        LKMCalculator(model, "cpu"),
        state,
        *(tight,) * 6,
    )


@compiled_too
@pytest.mark.parametrize("name", SMALL)
def test_a_mixed_batch_has_the_numbers_of_the_calculator(name, compile):
    outside = crystal(seed=1)
    outside.positions[0] += 3 * outside.cell[0] - 2 * outside.cell[2]
    slab = crystal(seed=2, pbc=[True, True, False])
    slab.cell[2] = 0
    structures = [
        rattled("C6H6"),
        outside,
        crystal(seed=3, pbc=[True, False, True]),
        ase.Atoms("H"),
        slab,
        rattled("H2O"),
    ]
    model = small_model(name)
    batched = LKMTorchSimModel(model, "cpu", compile=compile, compute_stress=True)
    out = batched(state_of(structures))
    assert kernel_used(batched) == compile
    expected = LKMCalculator(model, "cpu").evaluate(structures)
    energies = torch.tensor([one["energy"] for one in expected], dtype=torch.float64)
    assert relative_error(out["energy"], energies) < ROUND_OFF
    forces = torch.from_numpy(np.concatenate([one["forces"] for one in expected]))
    assert relative_error(out["forces"], forces) < ROUND_OFF
    for one, stress in zip(expected, out["stress"], strict=True):
        if "stress" in one:
            full = torch.from_numpy(voigt_6_to_full_3x3_stress(one["stress"]))
            assert relative_error(stress, full) < ROUND_OFF
        else:
            assert stress.isnan().all()


@pytest.mark.parametrize("name", SMALL)
def test_kernels_take_any_states_one_after_the_other(name):
    model = with_zbl(small_model(name), {"O-H": 1.0, "H-C": 1.1, "Si-C": 2.4})
    compiled = LKMTorchSimModel(model, "cpu", compile=True)
    plain = LKMTorchSimModel(model, "cpu")
    for structures in (
        [rattled("H2O")],
        [rattled(seed=k) for k in range(30)],
        [crystal(), crystal(1, pbc=[True, False, True])],
        [ase.Atoms("H"), rattled("C6H6")],
    ):
        state = state_of(structures)
        for compiled.compute_stress in (True, False):
            for compiled.compute_forces in (True, False):
                plain.compute_stress = compiled.compute_stress
                plain.compute_forces = compiled.compute_forces
                found, expected = compiled(state), plain(state)
                assert found.keys() == expected.keys()
                for key, value in expected.items():
                    finite = value.isfinite()
                    assert torch.equal(found[key].isfinite(), finite)
                    if finite.any():
                        assert relative_error(found[key][finite], value[finite]) < ROUND_OFF
    assert kernel_used(compiled)


def test_models_without_a_kernel_go_the_ordinary_way():
    class Other(type(small_model())):
        """An architecture that has no kernel."""

    model = small_model()
    model.__class__ = Other
    found = LKMTorchSimModel(model, "cpu", compile=True)
    state = state_of([rattled()])
    assert torch.equal(found(state)["forces"], wrapped()(state)["forces"])
    assert not kernel_used(found)


@compiled_too
def test_only_what_is_asked_for_comes(compile):
    model = wrapped(compile=compile, compute_forces=False)
    state = state_of([rattled(), rattled("H2O")])
    assert set(model(state)) == {"energy"}
    energy = model(state)["energy"]
    model.compute_forces = model.compute_stress = True
    out = model(state)
    assert set(out) == {"energy", "forces", "stress"}
    torch.testing.assert_close(out["energy"], energy, rtol=0, atol=1e-12)
    model.compute_forces = False
    assert set(model(state_of([crystal()]))) == {"energy", "stress"}


def test_results_are_of_the_states_type():
    state = ts.io.atoms_to_state([rattled()], CPU, torch.float32)
    assert {value.dtype for value in wrapped()(state).values()} == {torch.float32}


def nan_position(state):
    state.positions[9] = torch.nan


def same_spot(state):
    state.positions[9] = state.positions[10]


def no_cell(state):
    state.cell.zero_()


def flat_cell(state):
    state.cell[1] = 1.0


def gold(state):
    state.atomic_numbers[9] = 79


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_position, r"not finite in system\(s\) \[1\]"),
        (same_spot, "Atoms 9 and 10 .* same position"),
        (no_cell, r"no cell vector in system\(s\) \[1\]"),
        (flat_cell, r"flat in system\(s\) \[1\]"),
        (gold, "not support Au"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_its_system(change, message):
    model = small_model()
    model.calibrate(1.0, {}, [1, 6, 8, 14])
    state = state_of([rattled(), crystal()])
    change(state)
    with pytest.raises(ValueError, match=message):
        LKMTorchSimModel(model, "cpu")(state)


def test_no_pair_within_the_cut_off_is_no_trouble():
    apart = ase.Atoms("H2", positions=[[0, 0, 0], [9, 0, 0]])
    out = wrapped()(state_of([apart, apart]))
    assert not out["forces"].any()
    assert out["energy"][0] == out["energy"][1]


def test_no_limit_on_the_number_of_neighbours():
    points = np.stack(np.meshgrid(*[np.arange(6)] * 3), axis=-1).reshape(-1, 3) * 0.55
    dense = ase.Atoms("H216", positions=points)
    assert dense.get_all_distances().max() < 5.0, "so each has 215 neighbours"
    model = small_model()
    out = LKMTorchSimModel(model, "cpu")(state_of([dense]))
    expected = LKMCalculator(model, "cpu").evaluate([dense])[0]
    assert relative_error(out["forces"], torch.from_numpy(expected["forces"])) < ROUND_OFF


def test_constant_energy_run_conserves_it_for_each_replica():
    model = LKMTorchSimModel("rmd17-ethanol", "cpu", "float64")
    state = state_of([rattled(seed=k, amplitude=0.02) for k in range(3)], pbc=False)
    state.rng = 0
    state = ts.nve_init(state, model, kT=300 * KELVIN)
    totals, potentials = [], []
    for _ in range(40):
        state = ts.nve_step(state, model, dt=0.25 * FEMTOSECOND)
        kinetic = ts.calc_kinetic_energy(
            masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
        )
        totals.append(state.energy + kinetic)
        potentials.append(state.energy)
    totals, potentials = torch.stack(totals), torch.stack(potentials)
    spread = totals.max(0).values - totals.min(0).values
    exchanged = potentials.max(0).values - potentials.min(0).values
    assert (exchanged > 0.1).all(), "eV: something moved"
    assert (spread < 0.01 * exchanged).all()


@compiled_too
def test_langevin_of_a_hundred_replicas(compile):
    model = LKMTorchSimModel("rmd17-ethanol", "cpu", compile=compile)
    state = ts.initialize_state([rattled(amplitude=0.0)] * 100, CPU, model.dtype)
    state.rng = 0
    state = ts.integrate(
        system=state,
        model=model,
        integrator=ts.Integrator.nvt_langevin,
        n_steps=4,
        temperature=300,
        timestep=0.0005,
    )
    assert state.n_systems == 100
    assert len(state.energy.unique()) == 100, "each replica has noise of its own"
    assert 150 < state.calc_temperature().mean() < 350
    assert state.positions.isfinite().all()


@compiled_too
def test_relaxation_of_a_batch_and_in_parts(compile):
    model = LKMTorchSimModel("rmd17-ethanol", "cpu", "float64", compile=compile)
    replicas = [rattled(seed=k, amplitude=0.05) for k in range(3)]
    batcher = ts.InFlightAutoBatcher(
        model, memory_scales_with=model.memory_scales_with, cutoff=5.0, max_memory_scaler=150.0
    )
    common = dict(
        model=model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=ts.generate_force_convergence_fn(0.05, include_cell_forces=False),
        max_steps=150,
    )
    whole = ts.optimize(system=replicas, **common)
    parts = ts.optimize(system=replicas, autobatcher=batcher, **common)
    for state in (whole, parts):
        assert ts.system_wise_max_force(state).max() < 0.05
    spread = whole.energy.max() - whole.energy.min()
    assert spread < 0.01, "eV: the same minimum"
    torch.testing.assert_close(parts.energy, whole.energy, rtol=0, atol=5e-3)
    assert kernel_used(model) == compile

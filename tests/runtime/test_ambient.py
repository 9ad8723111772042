"""What a caller has set in torch changes no result."""

import copy
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from lkm_calc import MODELS, LKMCalculator, energy_and_forces, load_model, save_model
from lkm_calc.committee import Committee
from lkm_calc.compile import aot
from lkm_calc.compile.kernel_forces import KernelForces
from lkm_calc.compile.programs import ProgramForces
from lkm_calc.files.program_files import CompileError
from lkm_calc.potential.second_derivatives import hessian
from lkm_calc.runtime import precision
from lkm_calc.runtime.ambient import float32_by_default, own_settings
from train.fit.loop import fit

from ..support import (
    crystal,
    graph_of,
    rattled,
    rmd17_arrays,
    small_model,
    warnings_as_errors,
    write_npz,
)
from ..train.fit.test_loop import config, weights

CPU_PRODUCTS, CUDA_PRODUCTS = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def matmul_precision(name):
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        CPU_PRODUCTS.fp32_precision = CUDA_PRODUCTS.fp32_precision = "none"


@contextmanager
def general_precision(name):
    torch.backends.fp32_precision = name
    try:
        yield
    finally:
        torch.backends.fp32_precision = "none"


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def flushed():
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def cuda_autocast():
    """torch.autocast("cuda") without a GPU is nothing."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


SETTINGS = {
    "bfloat16 autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16 autocast": lambda: torch.autocast("cpu", torch.float16),
    "autocast of a GPU": cuda_autocast,
    "high precision": lambda: matmul_precision("high"),
    "medium precision": lambda: matmul_precision("medium"),
    "general precision": lambda: general_precision("bf16"),
    "device": lambda: torch.device("meta"),
    "default device": lambda: default_device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic": deterministic,
    "flushed": flushed,
    "numpy": lambda: np.errstate(all="raise"),
}
"""What a caller may have set."""


def state():
    return (
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_device(),
        torch.get_default_dtype(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        CPU_PRODUCTS.fp32_precision,
        CUDA_PRODUCTS.fp32_precision,
        torch.are_deterministic_algorithms_enabled(),
    )


def forces_of(calc, structures):
    return np.concatenate([found["forces"] for found in calc.evaluate(structures)])


def calculated(model):
    """Return all that a calculator tells."""
    calc, found = LKMCalculator(model, "cpu"), []
    for atoms in (rattled(), crystal()):
        found += [calc.get_property(name, atoms) for name in ("energy", "forces", "energies")]
        found += list(calc.extras.values())
    return [*found, calc.get_stress(crystal()), calc.get_hessian(rattled("HCl"))]


def committee(model):
    other = copy.deepcopy(model)
    other.scale.mul_(1.1)
    calc = LKMCalculator([model, other], "cpu")
    return [calc.get_forces(rattled()), *calc.extras.values()]


def batch(model):
    return [forces_of(LKMCalculator(model, "cpu"), [rattled(seed=s) for s in range(9)])]


def functions(model):
    found = energy_and_forces(model, graph_of(crystal(), model), stress=True)
    return [*found[:4], *found.embeddings, hessian(model, graph_of(rattled("H2O"), model))]


def energies(model):
    return [model(graph_of(rattled(), model)).energy.detach()]


def kernel(model):
    forces = KernelForces(model)
    found = forces(graph_of(rattled(), model))
    assert forces.used
    return [*found[:2], *found.embeddings]


@pytest.fixture
def _kernels(tmp_path, monkeypatch):
    monkeypatch.setenv("LKM_CACHE", str(tmp_path))
    monkeypatch.setattr(KernelForces, "_is_faster", lambda *arguments: True)


def assert_same(found, expected, setting):
    """Check numbers for the same bits, but where products of a CPU may go through oneDNN."""
    for mine, other in zip(found, expected, strict=True):
        mine, other = np.asarray(mine), np.asarray(other)
        if setting in ("medium precision", "general precision") and precision.onednn_is_exact():
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())
        else:
            assert np.array_equal(mine, other)


WAYS = [
    (way, name) for way in (calculated, committee, batch, functions, energies) for name in MODELS
]


@pytest.mark.parametrize(("way", "name"), [*WAYS, (kernel, "dimenet++")])
@pytest.mark.usefixtures("_kernels")
def test_results_do_not_depend_on_what_the_caller_has_set(way, name):
    model = small_model(name).float().requires_grad_(False)
    expected = way(model)
    for setting, make in SETTINGS.items():
        with warnings_as_errors(), make():
            before = state()
            found = way(model)
            assert state() == before, setting
        assert_same(found, expected, setting)


def test_loaded_models_do_not_depend_on_it_either(tmp_path):
    path, atoms = tmp_path / "model.safetensors", rattled()
    save_model(small_model().float(), path)
    expected = LKMCalculator(path, "cpu").get_forces(atoms)
    for setting, make in SETTINGS.items():
        with make():
            before = state()
            loaded, calc = load_model(path), LKMCalculator(path, "cpu")
            assert state() == before, setting
        assert np.array_equal(LKMCalculator(loaded, "cpu").get_forces(atoms), expected), setting
        assert np.array_equal(calc.get_forces(atoms), expected), setting


@pytest.mark.parametrize("setting", sorted(SETTINGS.keys() - {"flushed", "numpy"}))
def test_trainings_do_not_depend_on_it(setting, tmp_path):
    data = write_npz(tmp_path / "springs.npz", **rmd17_arrays(60))
    fit(config(data, tmp_path / "plain"), stop_after=7)
    with SETTINGS[setting]():
        before = state()
        fit(config(data, tmp_path / "set"), stop_after=7)
        assert state() == before
    plain, found = (weights(tmp_path / name) for name in ("plain", "set"))
    for part in ("model", "average"):
        mine, other = found[part].values(), plain[part].values()
        assert_same(mine, other, setting)


def test_the_first_product_may_be_made_under_autocast():
    """The route of products through oneDNN is chosen once, by their error."""
    precision.onednn_is_exact.cache_clear()
    plain = precision.onednn_is_exact()
    precision.onednn_is_exact.cache_clear()
    with torch.autocast("cpu"):
        assert precision.onednn_is_exact() == plain


def test_programs_are_compiled_without_autocast(monkeypatch):
    seen = []

    def compile_program(*arguments):
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
        raise CompileError("not here")

    monkeypatch.setattr(aot, "_compile", compile_program)
    model = small_model()
    with (
        torch.autocast("cpu"),
        torch.inference_mode(),
        pytest.warns(UserWarning, match="not here"),
    ):
        ProgramForces(model)(graph_of(rattled(), model))
    assert seen == [(False, False)]


def test_the_forces_of_training_are_differentiated_without_autocast():
    """Those of a training of one's own, which makes its second pass outside, as torch asks."""
    model = small_model().float()
    graph = graph_of(rattled(), model)

    def gradients(autocast):
        with torch.autocast("cpu", enabled=autocast):
            out = energy_and_forces(model, graph, create_graph=True)
            loss = out.forces.square().sum() + out.energy.sum()
        found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in found])

    assert torch.equal(gradients(autocast=True), gradients(autocast=False))


@own_settings
def settings_within():
    return (
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        str(torch.get_default_device()),
        torch.is_inference_mode_enabled(),
    )


def test_they_are_set_within_and_set_back_after_an_error():
    model = small_model()
    with cuda_autocast(), torch.autocast("cpu"), torch.device("meta"), torch.inference_mode():
        before = state()
        assert settings_within() == (False, False, "cpu", False)
        with pytest.raises(ValueError, match="not finite"):
            LKMCalculator(model).calculate(rattled(amplitude=np.nan))
        assert state() == before
        assert settings_within() == (False, False, "cpu", False), "after the error too"


def test_what_a_function_sets_itself_holds_for_what_it_calls():
    @own_settings
    def mixed():
        with torch.autocast("cpu"):
            return settings_within()[0]

    assert mixed()
    with torch.autocast("cpu"):
        assert mixed()
        assert not settings_within()[0]


def test_products_on_a_gpu_are_made_in_float32():
    @own_settings
    def routes():
        return CUDA_PRODUCTS.fp32_precision

    with matmul_precision("high"):
        assert CUDA_PRODUCTS.fp32_precision == "tf32"
        assert routes() == "ieee"
        assert CUDA_PRODUCTS.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"
    with general_precision("tf32"):
        routes()
    assert CUDA_PRODUCTS.fp32_precision == "none", "it follows the general setting again"


def test_threads_do_not_take_the_precision_from_each_other():
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = []

    @own_settings
    def first():
        first_in.set()
        second_in.wait(10)

    @own_settings
    def second():
        second_in.set()
        first_out.wait(10)
        seen.append(CUDA_PRODUCTS.fp32_precision)

    def run_second():
        first_in.wait(10)
        second()

    with matmul_precision("high"):
        thread = threading.Thread(target=run_second)
        thread.start()
        first()
        first_out.set()
        thread.join()
        assert seen == ["ieee"]
        assert CUDA_PRODUCTS.fp32_precision == "tf32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_weights_are_made_in_float32(dtype):
    with default_dtype(dtype):
        with float32_by_default():
            assert torch.zeros(1).dtype == torch.float32
        assert torch.get_default_dtype() == dtype


def test_extras_are_computed_when_they_are_read_and_the_same(monkeypatch):
    calc = LKMCalculator(small_model().float(), "cpu")
    calc.get_forces(rattled())
    expected = dict(calc.extras)
    calc.get_forces(rattled(seed=1))
    calc.get_forces(rattled())
    with torch.autocast("cpu"):
        assert expected
        for name, value in calc.extras.items():
            assert np.array_equal(value, expected[name])
    assert hasattr(Committee._extras, "__wrapped__")

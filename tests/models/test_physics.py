"""The physics battery on every architecture in MODELS, and controls that it would notice."""

import pytest
import torch

from benchmarks.published import with_published_envelope, with_published_features
from lkm_calc import MODELS
from lkm_calc.testing import (
    CHECKS,
    check_device,
    check_float32,
    check_model,
    check_neighbours,
    cutoffs_of,
    roughness,
)

from .. import support
from ..support import crystal, rattled, small_model

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(autouse=True, params=DEVICES)
def device(request, monkeypatch):
    monkeypatch.setattr(support, "device", request.param)


models = pytest.mark.parametrize("name", sorted(MODELS))


@models
@pytest.mark.parametrize("check", CHECKS)
def test_battery(name, check):
    CHECKS[check](small_model(name))


@models
def test_battery_with_other_weights(name):
    check_model(small_model(name, seed=1), set(CHECKS) - {"finite", "forces", "smoothness"})


@models
def test_no_neighbour_is_dropped_within_any_radius(name):
    radii = cutoffs_of(small_model(name))
    check_neighbours(small_model(name, **dict.fromkeys(radii, 4.0)))


@models
def test_float32_forces_are_close_to_float64(name):
    check_float32(small_model(name), rattled(), bound=1e-5)


CUTOFFS = [
    pytest.param(name, key, id=f"{name} {key}")
    for name in sorted(MODELS)
    for key in small_model(name).hypers
    if "cutoff" in key
]
"""Every radius of every architecture."""
TWO_GRAPHS = [p for p in CUTOFFS if "local_cutoff" in small_model(p.values[0]).hypers]
"""Those of MXMNet and PAMNet, whose published formulas are not smooth."""


def test_the_battery_knows_every_radius():
    assert {(p.values[0], p.values[1]) for p in CUTOFFS} == {
        (name, key) for name in MODELS for key in cutoffs_of(small_model(name))
    }
    assert len(CUTOFFS) == 6


@pytest.mark.parametrize(("name", "cutoff"), TWO_GRAPHS)
def test_control_the_published_features_jump(name, cutoff):
    model = with_published_features(small_model(name))
    energy, forces, _ = roughness(model, model.hypers[cutoff])
    assert energy > 0.5
    assert forces > 0.5


@pytest.mark.parametrize(("name", "cutoff"), TWO_GRAPHS)
def test_control_forces_jump_with_the_published_envelope_alone(name, cutoff):
    model = with_published_envelope(small_model(name))
    energy, forces, _ = roughness(model, model.hypers[cutoff])
    assert energy < 0.05
    assert forces > 0.1


def test_control_a_bias_on_a_gate_of_dimenetpp_makes_the_energy_jump():
    model = small_model("dimenet++")
    for output in model.outputs:
        output.rbf.bias = torch.nn.Parameter(torch.full((16,), 0.1, dtype=torch.float64))
    energy, _, _ = roughness(model, model.cutoff)
    assert energy > 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@models
@pytest.mark.parametrize("atoms", [rattled(), crystal()], ids=["molecule", "crystal"])
def test_cuda_equals_cpu(name, atoms):
    check_device(small_model(name).cpu(), "cuda", atoms)

import logging

import pytest
import torch
from torch import nn

from lkm_calc.files import CompileError
from train.state import Muon, muon
from train.state.muon import CompiledSteps, Options, orthogonalised, steps_of_torch

OPTIONS = Options(0.01, 0.95, 0.1, 5)
SHAPES = [(8, 8), (8, 8), (5, 17), (17, 5), (3, 3), (2, 130), (96, 32)]


@pytest.mark.parametrize("shape", [(5, 8, 8), (3, 4, 20), (3, 20, 4), (1, 2, 2)])
def test_steps_are_orthogonal_and_along_the_gradient(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double() * 1e-5
    steps = orthogonalised(matrices, 7)
    values = torch.linalg.svdvals(steps)
    assert values.min() > 0.4
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ steps @ vh.mT  # diagonal, as the singular vectors are those of the gradient
    torch.testing.assert_close(
        inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-8, rtol=0
    )
    assert (inner.diagonal(dim1=1, dim2=2) > 0).all()


@pytest.mark.parametrize("size", [0, 1e-22, 1e-40])
def test_the_gradient_of_a_dead_layer_makes_no_step(size):
    """Their squares underflow: dividing by the root of their sum would give no number."""
    assert orthogonalised(torch.randn(2, 3, 3) * size).abs().max() < 1e-6


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_are_those_of_torch(compiled):
    """torch.optim.Muon iterates in bfloat16, hence the tolerance."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((8, 8), (8, 8), (16, 4))]
    mine, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimisers = (
        Muon(mine, 0.1, 0.9, decay=0.1, compiled=compiled),
        torch.optim.Muon(
            theirs, lr=0.1, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for _ in range(3):
        for parameters in zip(mine, theirs, strict=True):
            gradient = torch.randn(parameters[0].shape)
            for parameter in parameters:
                parameter.grad = gradient.clone()
        for optimiser in optimisers:
            optimiser.step()
    for first, second, before in zip(mine, theirs, start, strict=True):
        assert (first - before).norm() > 0.1
        assert (first - second).norm() < 0.03 * (first - before).norm()


@pytest.mark.parametrize("compiled", [False, True])
def test_parameters_without_a_gradient_stay(compiled):
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    weights[0].grad = torch.eye(2)
    Muon(weights, 0.1, compiled=compiled).step()
    assert not torch.equal(weights[0], torch.ones(2, 2))
    assert torch.equal(weights[1], torch.ones(2, 2))


def test_only_matrices():
    with pytest.raises(ValueError, match="for matrices; got a parameter of shape"):
        Muon([nn.Parameter(torch.ones(3))], 0.1)


def arrays(dtype, scale=1.0):
    """Return random weights, gradients and averages."""
    torch.manual_seed(0)
    return tuple([torch.randn(s, dtype=dtype) * scale for s in SHAPES] for _ in range(3))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("scale", [1.0, 1e-8, 0.0])
def test_compiled_steps_are_those_in_torch(dtype, tolerance, scale):
    results = []
    for steps in (steps_of_torch, CompiledSteps()):
        weights, gradients, averages = arrays(dtype, scale)
        for _ in range(2):
            steps(weights, gradients, averages, OPTIONS)
        results.append((weights, averages))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance * max(scale, 1e-3), rtol=tolerance)


def test_compiled_steps_do_not_depend_on_the_number_of_threads():
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        found = arrays(torch.float32)
        torch.set_num_threads(threads)
        try:
            CompiledSteps()(*found, OPTIONS)
        finally:
            torch.set_num_threads(before)
        results.append(found)
    for one, other in zip(*results, strict=True):
        assert all(map(torch.equal, one, other))


def test_compiled_by_default_if_possible():
    def chosen(dtype, transposed=False):
        weights = [nn.Parameter(torch.ones(3, 2, dtype=dtype)) for _ in range(2)]
        if transposed:
            weights[1] = nn.Parameter(torch.ones(2, 3, dtype=dtype).mT)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimiser = Muon(weights, 0.1)
        optimiser.step()
        return optimiser.steps

    assert isinstance(chosen(torch.float32), CompiledSteps)
    assert isinstance(chosen(torch.float64), CompiledSteps)
    assert chosen(torch.bfloat16) is steps_of_torch
    assert chosen(torch.float32, transposed=True) is steps_of_torch


def test_without_a_compiler_torch_is_used(monkeypatch, caplog):
    def missing(name, folder):
        raise CompileError("there is no C++ compiler")

    monkeypatch.setattr(muon, "library", missing)
    with caplog.at_level(logging.INFO, "lkm_train"):
        assert muon.chosen(*arrays(torch.float32), OPTIONS) is steps_of_torch
    assert "there is no C++ compiler" in caplog.text


def test_wrong_compiled_steps_are_not_used(monkeypatch, caplog):
    class Wrong(CompiledSteps):
        def __call__(self, weights, gradients, averages, options):
            super().__call__(weights, gradients, averages, options._replace(iterations=4))

    monkeypatch.setattr(muon, "CompiledSteps", Wrong)
    found = arrays(torch.float32)
    assert muon.chosen(*found, OPTIONS) is steps_of_torch
    assert "differ from those of torch" in caplog.text
    for one, other in zip(found, arrays(torch.float32), strict=True):
        assert all(map(torch.equal, one, other))  # nothing changed by the comparison

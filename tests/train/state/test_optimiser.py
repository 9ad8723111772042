import dataclasses

import pytest
import torch
from torch import nn

from train.config import ConfigError, OptimiserConfig, config_from_table
from train.gradients.mixing import LearnedTeacher
from train.state.optimiser import Muon, make_optimisers, orthogonalised
from train.state.state import TrainingState, trained

from ...support import SMALL, small_model

MUON = OptimiserConfig(kind="muon", learning_rate=0.01)


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


def test_steps_are_those_of_torch():
    """torch.optim.Muon iterates in bfloat16, hence the tolerance."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((8, 8), (8, 8), (16, 4))]
    mine, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimisers = (
        Muon(mine, 0.1, 0.9, decay=0.1),
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


def test_parameters_without_a_gradient_stay():
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    weights[0].grad = torch.eye(2)
    Muon(weights, 0.1).step()
    assert not torch.equal(weights[0], torch.ones(2, 2))
    assert torch.equal(weights[1], torch.ones(2, 2))


def test_only_matrices():
    with pytest.raises(ValueError, match="for matrices; got a parameter of shape"):
        Muon([nn.Parameter(torch.ones(3))], 0.1)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_each_weight_is_changed_by_one_optimiser(name, kind):
    module = trained(small_model(name), LearnedTeacher(3))
    optimisers = make_optimisers(module, dataclasses.replace(MUON, kind=kind))
    changed = [p for o in optimisers for group in o.param_groups for p in group["params"]]
    assert len(changed) == len({id(p) for p in changed})
    assert {id(p) for p in changed} == {id(p) for p in module.parameters()}
    assert len(optimisers) == (2 if kind == "muon" else 1)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_weight_matrices_decay(kind):
    """Without gradients a step is the decay alone."""
    module = small_model("ace")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    config = dataclasses.replace(MUON, kind=kind, learning_rate=0.1, weight_decay=0.5)
    for optimiser in make_optimisers(module, config):
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
    linear = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    for name, parameter in module.named_parameters():
        factor = 0.95 if name in linear and min(parameter.shape) > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


def test_saved_and_continued(tmp_path):
    def train(state, steps):
        for seed in steps:
            generator = torch.Generator().manual_seed(seed)
            for parameter in state.trained.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
            for optimiser in state.optimisers:
                optimiser.step()

    whole, first, second = (TrainingState.create(small_model(), MUON) for _ in range(3))
    train(whole, range(4))
    train(first, range(2))
    first.save(tmp_path / "state.pt", {})
    second.load(tmp_path / "state.pt", {})
    train(second, range(2, 4))
    for one, two in zip(whole.trained.parameters(), second.trained.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum_is_checked(momentum):
    with pytest.raises(ConfigError, match="optimiser.momentum"):
        config_from_table({"optimiser": {"momentum": momentum}})

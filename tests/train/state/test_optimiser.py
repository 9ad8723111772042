import dataclasses

import pytest
import torch
from torch import nn

from train.config import ConfigError, OptimiserConfig, config_from_table
from train.gradients.mixing import LearnedTeacher
from train.state import make_optimisers
from train.state.state import TrainingState, trained

from ...support import SMALL, small_model

MUON = OptimiserConfig(kind="muon", learning_rate=0.01)


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

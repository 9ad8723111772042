import copy

import pytest
import torch
from torch import nn

from train.fit.step import clip_norm


@pytest.mark.parametrize("limit", [0.1, 1e3])
def test_norms_are_clipped_as_in_torch(limit):
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2,), ())]
    for parameter in mine:
        parameter.grad = torch.randn(parameter.shape)
    mine[2].grad = None
    theirs = copy.deepcopy(mine)
    for one, other in zip(mine, theirs, strict=True):
        other.grad = None if one.grad is None else one.grad.clone()
    clip_norm(mine, limit)
    torch.nn.utils.clip_grad_norm_(theirs, limit)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert torch.equal(mine[0].grad, torch.randn(3, 4, generator=seeded())) == (limit > 1)


def test_clipping_keeps_nan():
    """The loss is reported as divergent only if the weights become NaN with it."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, torch.nan])
    clip_norm([weight], 1.0)
    assert weight.grad.isnan().all()


def seeded():
    """Return a generator with the seed of the first gradient."""
    return torch.Generator().manual_seed(0)

import pytest
import torch

from train.config import OptimiserConfig
from train.state import TrainingState

from .support import small_model


def averages(decay, values):
    """Return the average of one weight after each of a series of its values."""
    model = small_model()
    state = TrainingState.create(model, OptimiserConfig(ema_decay=decay))
    weight, average = (m.embedding.radial.bias for m in (model, state.averaged_model))
    found = []
    for value in values:
        with torch.no_grad():
            weight.fill_(value)
        state.average.update_parameters(model)
        found.append(average[0].item())
    return found


def test_the_average_starts_at_the_first_weights_and_forgets_them_soon():
    found = averages(0.999, [5.0, 1.0, 1.0])
    assert found[0] == 5.0
    assert found[1] == pytest.approx(1 + 4 * 2 / 11)
    assert found[2] == pytest.approx(1 + 4 * 2 / 11 * 3 / 12)


def test_the_average_reaches_its_decay():
    found = averages(0.5, [0.0, *[1.0] * 40])
    assert 1 - found[-1] == pytest.approx((1 - found[-2]) * 0.5, rel=1e-6)


def test_best_and_counters_start_empty():
    state = TrainingState.create(small_model(), OptimiserConfig())
    assert state.step == 0
    assert state.best == float("inf")
    assert not state.loss_sums.any()

import pytest
import torch

from train.config import OptimiserConfig
from train.state.state import TrainingState, average_decay, learning_rate

from ...support import small_model


def averages(decay, values):
    """Return the average of one weight after each of a series of its values."""
    model = small_model()
    config = OptimiserConfig(ema_decay=decay)
    state = TrainingState.create(model, config)
    weight, average = (m.embedding.radial.bias for m in (model, state.averaged_model))
    found = []
    for step, value in enumerate(values):
        with torch.no_grad():
            weight.fill_(value)
        state.update_average(average_decay(step, 10**6, config))
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
    assert state.counters.best == float("inf")
    assert not state.loss_sums.any()


def test_swa_is_the_plain_mean_at_a_constant_rate():
    config = OptimiserConfig(swa_fraction=0.4, swa_rate=0.1, warmup_steps=0)
    assert [average_decay(k, 10, config) for k in range(6, 10)] == [0, 1 / 2, 2 / 3, 3 / 4]
    rates = [learning_rate(k, 10, config) for k in range(10)]
    assert rates[0] == config.learning_rate
    assert rates[5] < 0.2 * config.learning_rate
    assert rates[6:] == [pytest.approx(0.1 * config.learning_rate)] * 4


def test_the_rate_is_cut_on_plateaus_and_the_run_ends_without_a_new_best():
    config = OptimiserConfig(
        schedule="plateau", plateau_patience=2, plateau_factor=0.5, early_stopping=5, warmup_steps=0
    )
    state = TrainingState.create(small_model(), config)
    best = [state.note_score(score, config) for score in (3.0, 2.0, 2.5, 2.5, 2.5, 2.5)]
    assert best == [True, True, False, False, False, False]
    assert state.counters.rate_factor == 0.25
    assert learning_rate(7, 100, config, 0.25) == pytest.approx(config.learning_rate / 4)
    assert not state.stopped_early(config)
    state.note_score(2.1, config)
    assert state.stopped_early(config)
    state.note_score(1.9, config)
    assert not state.stopped_early(config)


def test_a_restart_repeats_the_schedule_at_half_the_rate():
    once = OptimiserConfig(epochs=2, warmup_steps=3)
    twice = OptimiserConfig(epochs=5, warmup_steps=3, restart_epoch=2)
    rates = [learning_rate(k, 50, twice) for k in range(50)]
    assert rates[:20] == [learning_rate(k, 20, once) for k in range(20)]
    longer = OptimiserConfig(epochs=3, warmup_steps=3, learning_rate=once.learning_rate / 2)
    assert rates[20:] == [learning_rate(k, 30, longer) for k in range(30)]

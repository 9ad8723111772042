import pytest
import torch

from lkm_calc import EnergyForces
from train.config import LossConfig
from train.loss import training_loss

FORCES = torch.tensor([[0.0, 0, 0], [3, 0, 0]], dtype=torch.float64)


def predicted():
    embeddings = (torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [1.0]]))
    energy = torch.tensor([-17000.25, -17000.75], dtype=torch.float64)
    return EnergyForces(energy, FORCES.clone(), None, torch.zeros(2), embeddings)


@pytest.mark.parametrize(
    ("kind", "energy", "forces"),
    [("l1", (0.25 + 0.75) / 2, 3 / 6), ("l2", (0.0625 + 0.5625) / 2, 9 / 6)],
)
def test_hand_computed(kind, energy, forces):
    labels = torch.full((2,), -17000.0, dtype=torch.float64)
    config = LossConfig(kind=kind, energy=2.0, forces=3.0, gamma=0.5)
    losses = training_loss(predicted(), labels, torch.zeros_like(FORCES), config)
    # Embeddings of atom 0 lie 1 from their mean 1, those of atom 1 on it: mean square 0.5.
    assert losses.energy.item() == pytest.approx(energy, abs=1e-12)
    assert losses.forces.item() == pytest.approx(forces, abs=1e-12)
    assert losses.lkm.item() == pytest.approx(0.5)
    assert losses.total.item() == pytest.approx(2 * energy + 3 * forces + 0.5 * 0.5, abs=1e-12)


def test_huber_is_quadratic_then_linear():
    labels = torch.full((2,), -17000.0, dtype=torch.float64)
    config = LossConfig(kind="huber", huber_delta=0.5)
    losses = training_loss(predicted(), labels, FORCES, config)
    assert losses.energy.item() == pytest.approx((0.5 * 0.25**2 + 0.5 * (0.75 - 0.25)) / 2)
    assert losses.forces.item() == 0


def test_gamma_zero_trains_without_mixing_but_logs_it():
    out = predicted()
    out.embeddings[0].requires_grad_()
    labels = torch.zeros(2, dtype=torch.float64)
    losses = training_loss(out, labels, FORCES, LossConfig(gamma=0.0))
    assert losses.lkm.item() == pytest.approx(0.5)
    assert not losses.total.requires_grad

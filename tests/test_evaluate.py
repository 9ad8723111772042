import pytest
import torch

from lkm_calc import energy_and_forces
from train.evaluate import Predictions, errors_of, predict
from train.loader import GraphFrames

from .support import graph_of, rattled, small_model
from .test_loader import frames_of


def test_errors_by_hand():
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    forces = torch.tensor([[0.001, 0, 0], [0, -0.005, 0]], dtype=torch.float64)
    energies = torch.tensor([-100.0, -200.0], dtype=torch.float64)
    shifted = energies + torch.tensor([0.002, -0.006], dtype=torch.float64)
    errors = errors_of(Predictions(energies, shifted, zeros, forces, torch.tensor([2, 3])))
    assert errors.energy_mae == pytest.approx(4.0)
    assert errors.energy_rmse == pytest.approx((20.0) ** 0.5)
    assert errors.energy_per_atom_mae == pytest.approx((1 + 2) / 2)
    assert errors.force_mae == pytest.approx(1.0)
    assert errors.force_rmse == pytest.approx((26 / 6) ** 0.5)


def test_predictions_come_in_the_order_of_the_frames():
    structures = [rattled(), rattled("H2O"), rattled("C6H6")]
    model = small_model()
    data = GraphFrames(frames_of(structures), model.cutoff, torch.device("cpu"))
    predictions = predict(model, data, batch_size=2)
    singles = [energy_and_forces(model, graph_of(atoms, model)) for atoms in structures]
    expected = torch.cat([s.energy for s in singles])
    assert torch.allclose(predictions.predicted_energies, expected, rtol=1e-10)
    expected = torch.cat([s.forces for s in singles])
    assert torch.allclose(predictions.predicted_forces, expected, rtol=1e-8, atol=1e-10)
    assert predictions.energies.tolist() == [0, 1, 2]
    assert predictions.n_atoms.tolist() == [9, 3, 12]

from dataclasses import replace

import pytest
import torch

from lkm_calc import Graph, energy_and_forces, lkm_loss
from train.data.loader import GraphFrames
from train.report.evaluate import LayerStatistics, Pair, Predictions, errors_of, predict

from ...support import graph_of, rattled, small_model
from ..data.test_loader import frames_of


def test_errors_by_hand():
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    forces = torch.tensor([[0.001, 0, 0], [0, -0.005, 0]], dtype=torch.float64)
    energies = torch.tensor([-100.0, -200.0], dtype=torch.float64)
    shifted = energies + torch.tensor([0.002, -0.006], dtype=torch.float64)
    predictions = Predictions(
        Pair(energies, shifted),
        Pair(zeros, forces),
        Pair(torch.zeros(1, 3, 3), torch.full((1, 3, 3), 0.002)),
        torch.tensor([1, 8]),
        torch.tensor([2, 3]),
        LayerStatistics(0.0, 0.0, 0.0),
        energies,
    )
    errors = errors_of(predictions)
    assert errors.energy_mae == pytest.approx(4.0)
    assert errors.energy_rmse == pytest.approx((20.0) ** 0.5)
    assert errors.energy_per_atom_mae == pytest.approx((1 + 2) / 2)
    assert errors.force_mae == pytest.approx(1.0)
    assert errors.force_rmse == pytest.approx((26 / 6) ** 0.5)
    assert errors.stress_mae == pytest.approx(2.0)
    without = errors_of(predictions._replace(forces=None, stress=None))
    assert set(without.figures()) == {"energy_mae", "energy_rmse", "energy_per_atom_mae"}


def test_predictions_come_in_the_order_of_the_frames():
    structures = [rattled(), rattled("H2O"), rattled("C6H6")]
    model = small_model()
    data = GraphFrames(frames_of(structures), model, torch.device("cpu"))
    predictions = predict(model, data, batch_size=2)
    singles = [energy_and_forces(model, graph_of(atoms, model)) for atoms in structures]
    expected = torch.cat([s.energy for s in singles])
    assert torch.allclose(predictions.energies.predicted, expected, rtol=1e-10)
    expected = torch.cat([s.forces for s in singles])
    assert torch.allclose(predictions.forces.predicted, expected, rtol=1e-8, atol=1e-10)
    assert predictions.energies.labels.tolist() == [0, 1, 2]
    assert predictions.n_atoms.tolist() == [9, 3, 12]


def test_layer_statistics_against_loops():
    structures = [rattled(), rattled("H2O"), rattled("C6H6")]
    model = small_model()
    data = GraphFrames(frames_of(structures), model, torch.device("cpu"))
    found = predict(model, data, batch_size=2).layers
    graph = Graph.collate([graph_of(atoms, model) for atoms in structures])
    layers = torch.stack(energy_and_forces(model, graph).embeddings)
    cosines = [
        torch.nn.functional.cosine_similarity(layers[j], layers[k]).mean()
        for j in range(len(layers))
        for k in range(j)
    ]
    assert found.cosine == pytest.approx(torch.stack(cosines).mean().item())
    assert found.lkm == pytest.approx(lkm_loss(list(layers)).item())


def test_without_forces_only_energies_are_computed():
    frames = replace(frames_of([rattled(), rattled("H2O")]), forces=None)
    model = small_model()
    predictions = predict(model, GraphFrames(frames, model, torch.device("cpu")), 2)
    assert predictions.forces is None
    expected = model(graph_of(rattled(), model)).energy
    assert predictions.energies.predicted[0].item() == pytest.approx(expected.item(), rel=1e-10)

import numpy as np
import pytest
import torch

from lkm_calc import LKMCalculator, Prediction, lkm_loss
from lkm_calc.embeddings.disagreement import layer_disagreement

from ..support import graph_of, rattled, small_model


def test_against_loops():
    layers = [torch.randn(4, 3, dtype=torch.float64) for _ in range(3)]
    found = layer_disagreement(layers)
    for atom in range(4):
        rows = np.array([layer[atom].numpy() for layer in layers])
        expected = np.sqrt(np.mean((rows - rows.mean(0)) ** 2))
        assert found[atom].item() == pytest.approx(expected, rel=1e-12)


def test_it_is_what_lkm_makes_small():
    embeddings = small_model()(graph_of(rattled(), small_model())).embeddings
    squares = layer_disagreement(embeddings).square().mean()
    assert squares.item() == pytest.approx(lkm_loss(embeddings).item(), rel=1e-12)


def test_equal_layers_agree():
    same = torch.randn(4, 3)
    assert not layer_disagreement([same, same]).any()


def test_a_single_layer_is_refused():
    with pytest.raises(ValueError, match="returned 1. .* committee"):
        layer_disagreement([torch.zeros(2, 2)])


def test_the_calculator_tells_it():
    model, atoms = small_model(), rattled()
    atoms.calc = LKMCalculator(model)
    atoms.get_potential_energy()
    prediction: Prediction = model(graph_of(atoms, model))
    expected = layer_disagreement(prediction.embeddings).detach().cpu().numpy()
    np.testing.assert_allclose(atoms.calc.extras["layer_disagreement"], expected, rtol=1e-10)

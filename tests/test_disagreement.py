import numpy as np
import pytest
import torch

from lkm_calc import LKMCalculator, Prediction, lkm_loss
from lkm_calc.calibration import Calibration, calibration_of
from lkm_calc.disagreement import layer_disagreement

from .support import graph_of, rattled, small_model

QUANTILES = {"50": 0.1, "95": 0.2, "99": 0.3, "99.9": 0.4, "max": 0.5}
CURVE = {"disagreement": [0.1, 0.3], "error": [0.02, 0.06]}
DATA = {
    "frames": 5,
    "force_error": QUANTILES,
    "disagreement": {"H": QUANTILES, "C": {name: 2 * v for name, v in QUANTILES.items()}},
    "expected_error": {"H": CURVE, "C": CURVE},
    "closest": {"H-H": 1.5, "H-C": 1.0, "C-C": 1.4},
}
"""A calibration of a model of hydrogen and carbon."""


def test_against_loops():
    layers = [torch.randn(4, 3, dtype=torch.float64) for _ in range(3)]
    found, relative = layer_disagreement(layers), layer_disagreement(layers, relative=True)
    for atom in range(4):
        rows = np.array([layer[atom].numpy() for layer in layers])
        expected = np.sqrt(np.mean((rows - rows.mean(0)) ** 2))
        assert found[atom].item() == pytest.approx(expected, rel=1e-12)
        size = np.sqrt(np.mean(rows**2))
        assert relative[atom].item() == pytest.approx(expected / size, rel=1e-12)


def test_it_is_what_lkm_makes_small():
    embeddings = small_model()(graph_of(rattled(), small_model())).embeddings
    squares = layer_disagreement(embeddings).square().mean()
    assert squares.item() == pytest.approx(lkm_loss(embeddings).item(), rel=1e-12)


def test_equal_layers_agree_also_where_they_are_zero():
    same = torch.randn(4, 3)
    assert not layer_disagreement([same, same]).any()
    assert not layer_disagreement([torch.zeros(4, 3)] * 2, relative=True).any()


def test_a_single_layer_is_refused():
    with pytest.raises(ValueError, match="where there is 1. .* committee"):
        layer_disagreement([torch.zeros(2, 2)])


def test_the_calculator_tells_it():
    model, atoms = small_model(), rattled()
    atoms.calc = LKMCalculator(model)
    atoms.get_potential_energy()
    prediction: Prediction = model(graph_of(atoms, model))
    expected = layer_disagreement(prediction.embeddings).detach().cpu().numpy()
    np.testing.assert_allclose(atoms.calc.extras["layer_disagreement"], expected, rtol=1e-10)


def test_what_a_calibration_tells():
    calibration = Calibration(**DATA)
    numbers = np.array([6, 1, 1])
    np.testing.assert_array_equal(calibration.threshold(numbers), [1.0, 0.5, 0.5])
    np.testing.assert_array_equal(calibration.threshold(numbers, "50"), [0.2, 0.1, 0.1])
    errors = calibration.force_errors(numbers, np.array([0.2, 0.0, 9.0]))
    np.testing.assert_allclose(errors, [0.04, 0.02, 0.06])
    table = calibration.closest_table()
    assert table[1, 6] == table[6, 1] == 1.0
    assert table[6, 6] == 1.4
    assert table[8].max() == 0


def test_a_model_without_one():
    assert calibration_of(small_model()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"closest": {"H-H": 1.5}},
        {"force_error": {"50": 0.1}},
        {"force_error": QUANTILES | {"99": "much"}},
        {"force_error": QUANTILES | {"99": float("nan")}},
        {"disagreement": {"H": QUANTILES}},
        {"expected_error": {"H": CURVE, "C": {"disagreement": [1.0], "error": []}}},
        {"colour": 3},
    ],
)
def test_damage_is_named(change):
    model = small_model()
    model.calibrate(1.0, {}, [1, 6])
    model.provenance = {"calibration": DATA}
    assert calibration_of(model) == Calibration(**DATA)
    model.provenance = {"calibration": DATA | change}
    with pytest.raises(ValueError, match="calibration is damaged .*lkm-train calibrate"):
        calibration_of(model)

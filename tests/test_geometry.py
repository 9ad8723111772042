import numpy as np
import pytest
import torch
from scipy.special import eval_legendre

from lkm_calc.geometry import lengths_and_directions, spherical_harmonics

from .support import ROUND_OFF

MAX_DEGREE = 6


def unit_vectors(n, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_addition_theorem(degree):
    a, b = unit_vectors(50, 1), unit_vectors(50, 2)
    y_a, y_b = (spherical_harmonics(v, MAX_DEGREE)[degree] for v in (a, b))
    assert y_a.shape == (50, 2 * degree + 1)
    legendre = eval_legendre(degree, (a * b).sum(1).numpy())
    expected = (2 * degree + 1) / (4 * np.pi) * legendre
    np.testing.assert_allclose((y_a * y_b).sum(1).numpy(), expected, atol=ROUND_OFF)


def test_harmonics_are_orthonormal():
    # Gauss–Legendre in cos θ times equidistant φ integrates these products exactly.
    z, weight = np.polynomial.legendre.leggauss(10)
    phi = 2 * np.pi * np.arange(20) / 20
    s = np.sqrt(1 - z**2)[:, None]
    points = np.stack([s * np.cos(phi), s * np.sin(phi), z[:, None] + 0 * phi], -1).reshape(-1, 3)
    weights = np.repeat(weight, 20) * 2 * np.pi / 20
    y = torch.cat(spherical_harmonics(torch.from_numpy(points), MAX_DEGREE), 1).numpy()
    np.testing.assert_allclose(y.T @ (weights[:, None] * y), np.eye(49), atol=ROUND_OFF)


def test_harmonics_are_smooth_at_the_poles():
    poles = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
    poles.requires_grad_()

    def total(v):
        return torch.cat(spherical_harmonics(v, MAX_DEGREE), 1).square().sum(0)

    assert torch.autograd.gradcheck(total, (poles,))
    assert torch.autograd.gradgradcheck(total, (poles,))


def test_lengths_and_directions():
    lengths, directions = lengths_and_directions(torch.tensor([[3.0, 0, 4], [0, -2, 0]]))
    assert lengths.tolist() == [5, 2]
    assert torch.allclose(directions, torch.tensor([[0.6, 0, 0.8], [0, -1, 0]]))

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre

from lkm_calc.nn.basis import SphericalHarmonics
from lkm_calc.nn.geometry import legendre, lengths_and_directions

from ..support import ROUND_OFF

MAX_DEGREE = 6
harmonics_of = SphericalHarmonics(MAX_DEGREE).double()


def all_harmonics(directions):
    """Return those of all degrees side by side, (vectors, (MAX_DEGREE + 1)²)."""
    y = harmonics_of(directions)
    return torch.cat([y[:, l, : 2 * l + 1] for l in range(MAX_DEGREE + 1)], 1)


def unit_vectors(n, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_addition_theorem(degree):
    a, b = unit_vectors(50, 1), unit_vectors(50, 2)
    y_a, y_b = (harmonics_of(v)[:, degree] for v in (a, b))
    assert not y_a[:, 2 * degree + 1 :].any()
    polynomial = eval_legendre(degree, (a * b).sum(1).numpy())
    expected = (2 * degree + 1) / (4 * np.pi) * polynomial
    np.testing.assert_allclose((y_a * y_b).sum(1).numpy(), expected, atol=ROUND_OFF)


def test_harmonics_are_orthonormal():
    # Gauss–Legendre in cos θ times equidistant φ integrates these products exactly.
    z, weight = np.polynomial.legendre.leggauss(10)
    phi = 2 * np.pi * np.arange(20) / 20
    s = np.sqrt(1 - z**2)[:, None]
    points = np.stack([s * np.cos(phi), s * np.sin(phi), z[:, None] + 0 * phi], -1).reshape(-1, 3)
    weights = np.repeat(weight, 20) * 2 * np.pi / 20
    y = all_harmonics(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(y.T @ (weights[:, None] * y), np.eye(49), atol=ROUND_OFF)


def test_harmonics_are_smooth_at_the_poles():
    poles = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
    poles.requires_grad_()

    def total(v):
        return all_harmonics(v).square().sum(0)

    assert torch.autograd.gradcheck(total, (poles,))
    assert torch.autograd.gradgradcheck(total, (poles,))


def test_lengths_and_directions():
    lengths, directions = lengths_and_directions(torch.tensor([[3.0, 0, 4], [0, -2, 0]]))
    assert lengths.tolist() == [5, 2]
    assert torch.allclose(directions, torch.tensor([[0.6, 0, 0.8], [0, -1, 0]]))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_legendre_polynomials_against_scipy(count):
    cosines = torch.linspace(-1, 1, 21, dtype=torch.float64)
    degrees = np.arange(count)
    expected = np.sqrt((2 * degrees + 1) / (4 * np.pi)) * eval_legendre(
        degrees, cosines[:, None].numpy()
    )
    np.testing.assert_allclose(legendre(cosines, count).numpy(), expected, atol=ROUND_OFF)

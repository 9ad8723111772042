import math

import numpy as np
import pytest
import torch
from scipy.special import spherical_jn

from lkm_calc.nn.basis import BesselBasis, SphericalBesselBasis, envelope, spherical_bessel_zeros

CUTOFF = 5.0


def derivatives(function, x, order):
    x = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    values = [function(x)]
    for _ in range(order):
        values.append(torch.autograd.grad(values[-1].sum(), x, create_graph=True)[0])
    return [v.item() for v in values]


def test_envelope_vanishes_twice_differentiably_at_the_cutoff():
    below = 1 - 1e-9
    for value in derivatives(lambda x: envelope(x, 6), below, 2):
        assert abs(value) < 1e-6
    assert derivatives(lambda x: envelope(x, 6), 1.0, 2) == [0, 0, 0]


def test_control_a_shifted_exponent_is_not_smooth():
    # The published MXMNet and PAMNet use coefficients of p with powers of p + 1.
    def shifted(x, p=6):
        a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
        return 1 / x + a * x**p + b * x ** (p + 1) + c * x ** (p + 2)

    assert abs(derivatives(shifted, 1.0, 1)[1]) > 0.5


def test_envelope_against_its_formula():
    assert envelope(torch.tensor([0.5], dtype=torch.float64), 6).item() == pytest.approx(
        2 - 28 * 0.5**5 + 48 * 0.5**6 - 21 * 0.5**7, abs=1e-14
    )


def test_bessel_basis():
    basis = BesselBasis(6, CUTOFF, 6).double()
    r = torch.tensor([1.3, 4.2, 5.0, 7.0], dtype=torch.float64)
    values = basis(r)
    x = 1.3 / CUTOFF
    u = envelope(torch.tensor([x], dtype=torch.float64), 6).item()
    expected = [u * math.sin(n * math.pi * x) for n in range(1, 7)]
    np.testing.assert_allclose(values[0].detach(), expected, rtol=1e-6)  # float32 frequencies
    assert not values[2:].any()


def test_spherical_bessel_zeros():
    zeros = spherical_bessel_zeros(6, 6)
    assert zeros.shape == (7, 6)
    np.testing.assert_allclose(zeros[0], np.pi * np.arange(1, 7))
    assert zeros[1, 0] == pytest.approx(4.493409457909064, abs=1e-12)
    for degree in range(7):
        np.testing.assert_allclose(spherical_jn(degree, zeros[degree]), 0, atol=1e-13)


def reference_spherical_basis(r):
    x = r / CUTOFF
    zeros = spherical_bessel_zeros(6, 6)
    u = envelope(torch.from_numpy(x), 6).numpy()
    rows = []
    for degree in range(7):
        norm = np.sqrt(2) / np.abs(spherical_jn(degree + 1, zeros[degree]))
        rows.append(norm * spherical_jn(degree, x[:, None] * zeros[degree]))
    return u[:, None, None] * np.stack(rows, axis=1)


def test_spherical_bessel_table_against_scipy():
    r = np.random.default_rng(0).uniform(0.3, CUTOFF, 5000)
    basis = SphericalBesselBasis(7, 6, CUTOFF, 6).double()
    expected = reference_spherical_basis(r)
    scale = np.abs(expected).max()
    assert np.abs(basis(torch.from_numpy(r)).numpy() - expected).max() < 1e-11 * scale
    single = basis.float()(torch.from_numpy(r).float()).double().numpy()
    assert np.abs(single - expected).max() < 2e-6 * scale


def test_spherical_bessel_table_keeps_its_digits_when_cast_down_and_up():
    basis = SphericalBesselBasis(7, 6, CUTOFF, 6).double()
    table = basis.pieces.clone()
    assert torch.equal(basis.float().double().pieces, table)


def test_spherical_bessel_basis_is_differentiable_twice():
    basis = SphericalBesselBasis(3, 2, CUTOFF, 6).double()
    r = torch.tensor([0.9, 2.345, 4.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(basis, (r,))
    assert torch.autograd.gradgradcheck(basis, (r,))


def test_nothing_beyond_the_cutoff():
    basis = SphericalBesselBasis(7, 6, CUTOFF, 6)
    assert not basis(torch.tensor([5.0, 5.1, 80.0])).any()


def test_a_wider_span_keeps_the_waves_and_ends_at_the_cutoff():
    r = torch.linspace(0.5, 1.99, 50, dtype=torch.float64)
    ratio = (envelope(r / 2.0, 6) / envelope(r / CUTOFF, 6)).view(-1, 1)
    short, long = (BesselBasis(5, c, 6, CUTOFF).double() for c in (2.0, CUTOFF))
    assert torch.allclose(short(r), long(r) * ratio, rtol=1e-5)  # frequencies rounded to float32
    short, long = (SphericalBesselBasis(3, 2, c, 6, CUTOFF).double() for c in (2.0, CUTOFF))
    assert torch.allclose(short(r), long(r) * ratio.unsqueeze(2), rtol=1e-10)
    assert not short(torch.tensor([2.0, 3.0], dtype=torch.float64)).any()

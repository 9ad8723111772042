"""The published formulas of MXMNet and PAMNet that lkm-calc modifies, for comparison.

Both networks embed distances as σ(W rbf + b). With the bias, messages do not vanish at the
cut-off, and their envelope, 1/x + a xᵖ + b xᵖ⁺¹ + c xᵖ⁺² with the coefficients for xᵖ⁻¹, xᵖ, xᵖ⁺¹,
has the slope −1 there.
"""

import copy

import torch
from torch import Tensor, nn

from lkm_calc import EnergyModel
from lkm_calc.nn import BesselBasis, MultiplexBasis, SphericalBesselBasis


def published_envelope(x: Tensor, exponent: int) -> Tensor:
    """Return their u(x): u(1) = 0 and u'(1) = −1."""
    p = exponent
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    return 1 / x + x**p * (a + x * (b + c * x))


class PublishedBessel(BesselBasis):
    def forward(self, distances: Tensor) -> Tensor:
        x = distances / self.cutoff
        u = published_envelope(x, self.exponent)
        return u.unsqueeze(-1) * torch.sin(self.frequencies * x.unsqueeze(-1))


class PublishedSpherical(SphericalBesselBasis):
    def forward(self, distances: Tensor) -> Tensor:
        u = published_envelope(distances / self.cutoff, self.exponent)
        return self.bessel(distances) * u.view(-1, 1, 1)


def with_published_envelope(model: EnergyModel) -> EnergyModel:
    """Return a copy of an MXMNet or PAMNet with their envelope."""
    model = copy.deepcopy(model)
    basis = model.basis
    assert isinstance(basis, MultiplexBasis)
    for name in ("radial_wide", "radial_local"):
        ours = getattr(basis, name)
        theirs = PublishedBessel(len(ours.frequencies), ours.cutoff, ours.exponent)
        theirs.load_state_dict(ours.state_dict())
        setattr(basis, name, theirs.to(ours.frequencies))
    ours = basis.spherical
    theirs = PublishedSpherical(*ours.shape, ours.cutoff, ours.exponent, ours.span)
    basis.spherical = theirs.to(ours.pieces)
    return model


def with_published_features(model: EnergyModel) -> EnergyModel:
    """Return a copy with their envelope and a random bias on the projections of the distances."""
    model = with_published_envelope(model)
    basis = model.basis
    assert isinstance(basis, MultiplexBasis)
    for layer in (basis.to_wide, basis.to_local):
        bias = torch.empty(layer.out_features).to(layer.weight)
        layer.bias = nn.Parameter(bias.uniform_(-1, 1) / layer.in_features**0.5)
    return model

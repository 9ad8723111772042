"""MXMNet and PAMNet against their equations written out edge by edge and angle by angle."""

import pytest
import torch
from scipy.special import eval_legendre
from torch.nn.functional import silu

from benchmarks.published import with_published_envelope
from lkm_calc import build_model, energy_and_forces
from lkm_calc.models.pamnet import smooth_leaky_relu

from ..support import ROUND_OFF, crystal, graph_of, rattled, relative_error, small_model

structures = pytest.mark.parametrize(
    "atoms", [rattled(amplitude=0.2), crystal()], ids=["molecule", "crystal"]
)


class Reference:
    """Edges, angles and their features, one at a time, with a model's weights."""

    def __init__(self, model, atoms):
        self.graph, self.basis = graph_of(atoms, model), model.basis
        self.vectors = self.graph.edge_vectors()
        self.lengths = self.vectors.norm(dim=1)
        self.ends = list(zip(*self.graph.edge_index.tolist(), strict=True))
        self.local = [k for k, r in enumerate(self.lengths) if r < model.basis.local_cutoff]
        basis = self.basis
        self.e_wide = silu(basis.to_wide(basis.radial_wide(self.lengths)))
        self.e_local = silu(basis.to_local(basis.radial_local(self.lengths)))

    def angle(self, a, b, sign, project):
        """Return the features of the angle of edges a and b, the cosine times a sign.

        The same weights serve the published sign, −û_kj·û_ij, as (−1)^l of them.
        """
        cosine = sign * (self.vectors[a] @ self.vectors[b]) / (self.lengths[a] * self.lengths[b])
        radial = self.basis.spherical(self.lengths[a : a + 1])[0]
        # sbf_ln(r, α) = u(r) j_l(r) √((2l+1)/4π) P_l(cos α)
        angular = [
            ((2 * l + 1) / (4 * torch.pi)) ** 0.5 * eval_legendre(l, cosine.item())
            for l in range(len(radial))
        ]
        return project((radial * torch.tensor(angular).unsqueeze(1)).flatten())

    def two_hop(self, ji):
        """Yield the edges k → j of the angles k → j → i, k ≠ i, and their features."""
        back = self.graph.reverse[ji].item()
        for kj in self.local:
            if self.ends[kj][1] == self.ends[ji][0] and kj != back:
                yield kj, self.angle(kj, ji, -1, self.basis.to_two_hop)

    def one_hop(self, ji):
        """Yield the edges j' → i of the angles j → i ← j', j' ≠ j, and their features."""
        for other in self.local:
            if self.ends[other][1] == self.ends[ji][1] and other != ji:
                yield other, self.angle(other, ji, 1, self.basis.to_one_hop)

    def joined(self, h, k, e):
        """Return [h_i ‖ h_j ‖ e_ij] of edge k."""
        j, i = self.ends[k]
        return torch.cat([h[i], h[j], e[k]])

    def global_sum(self, h, module):
        rows = list(h)
        for k, (_, i) in enumerate(self.ends):
            message = silu(module.message(self.joined(h, k, self.e_wide)))
            rows[i] = rows[i] + module.gate(self.e_wide[k]) * message
        return torch.stack(rows)


def mxmnet(model, atoms):
    """Return the energy by the equations of MXMNet."""
    ref = Reference(model, atoms)
    h, energy = model.embedding(ref.graph.numbers), 0.0
    for wide, local, head in zip(model.global_passes, model.local_passes, model.heads, strict=True):
        r, h = h, ref.global_sum(wide.mlp(h), wide.messages)
        h = ref.global_sum(wide.update(h, r), wide.messages)
        r, h = h, local.mlp(h)
        gates = [local.gates(e).chunk(3) for e in ref.e_local]
        m = {k: silu(local.messages(ref.joined(h, k, ref.e_local))).chunk(2) for k in ref.local}
        m = {
            ji: m[ji][0]
            + sum(m[kj][1] * gates[kj][0] * local.two_hop(sbf) for kj, sbf in ref.two_hop(ji))
            for ji in ref.local
        }
        m = {k: local.again(m[k]).chunk(2) for k in ref.local}
        m = {
            ji: m[ji][0]
            + sum(m[o][1] * gates[o][1] * local.one_hop(sbf) for o, sbf in ref.one_hop(ji))
            for ji in ref.local
        }
        rows = [torch.zeros_like(row) for row in h]
        for k in ref.local:
            rows[ref.ends[k][1]] = rows[ref.ends[k][1]] + gates[k][2] * m[k]
        h = local.update(torch.stack(rows), r)
        energy = energy + head(h)[0].sum()
    return energy


def pamnet(model, atoms):
    """Return the energy by the equations of PAMNet."""
    ref = Reference(model, atoms)
    x, energy = model.embedding(ref.graph.numbers), 0.0
    heads = iter(model.heads)
    for wide, local in zip(model.global_passes, model.local_passes, strict=True):
        x = wide.update(ref.global_sum(wide.mlp(x), wide.messages), x)
        first = next(heads)(x)
        r, x = x, local.mlp(x)
        gates = [local.gates(e).chunk(2) for e in ref.e_local]
        m = {k: silu(local.messages(ref.joined(x, k, ref.e_local))).chunk(2) for k in ref.local}
        rows = list(x)
        for ji in ref.local:
            angles = list(ref.one_hop(ji))
            if model.basis.to_two_hop is not None:
                angles += ref.two_hop(ji)
            total = m[ji][1] + sum(m[k][0] * gates[k][0] * local.angles(sbf) for k, sbf in angles)
            rows[ref.ends[ji][1]] = rows[ref.ends[ji][1]] + gates[ji][1] * total
        x = local.update(torch.stack(rows), r)
        second = next(heads)(x)
        scores = smooth_leaky_relu(torch.stack([first.scores, second.scores]))
        fused = torch.softmax(scores, 0) * torch.stack([first.values, second.values])
        energy = energy + fused.sum()
    return energy


@structures
@pytest.mark.parametrize(
    ("equations", "hypers"),
    [(mxmnet, {}), (pamnet, {}), (pamnet, {"two_hop": False})],
    ids=["mxmnet", "pamnet", "pamnet-s"],
)
def test_the_energy_is_that_of_the_equations(equations, hypers, atoms):
    model = small_model(equations.__name__, local_cutoff=3.0, **hypers)
    expected = equations(model, atoms).unsqueeze(0)
    found = energy_and_forces(model, graph_of(atoms, model)).energy
    assert relative_error(found, expected) < ROUND_OFF


def test_parameter_counts():
    """The published counts are 3,773,862 and 3,578,796, with 5 elements and two biases more."""

    def count(name, **hypers):
        return sum(p.numel() for p in build_model(name, **hypers).parameters())

    more_elements, fewer_biases = (95 - 5) * 128, 2 * 128
    assert count("mxmnet") == 3_773_862 + more_elements - fewer_biases == 3_785_126
    assert count("pamnet") == 3_578_796 + more_elements - fewer_biases == 3_590_060
    assert count("pamnet", two_hop=False) == 3_590_060 - (42 * 128 + 128)


@pytest.mark.parametrize(
    ("name", "tap", "layers"),
    [
        ("mxmnet", "state", 2),
        ("mxmnet", "head", 2),
        ("pamnet", "state", 4),
        ("pamnet", "global", 2),
        ("pamnet", "local", 2),
        ("pamnet", "head", 4),
        ("dimenet++", "state", 3),
        ("dimenet++", "head", 3),
    ],
)
def test_taps(name, tap, layers):
    model, plain = small_model(name, lkm_tap=tap), small_model(name)
    graph = graph_of(rattled(), model)
    out, expected = model(graph), plain(graph)
    assert [tuple(e.shape) for e in out.embeddings] == [(9, 16)] * layers
    assert torch.equal(out.energy, expected.energy)
    chosen = {"global": slice(0, None, 2), "local": slice(1, None, 2), "state": slice(None)}
    if tap in chosen:
        found = torch.stack(out.embeddings)
        assert torch.equal(found, torch.stack(expected.embeddings[chosen[tap]]))


@pytest.mark.parametrize("name", ["dimenet++", "mxmnet", "pamnet"])
def test_an_unknown_tap_is_refused(name):
    with pytest.raises(ValueError, match="lkm_tap is 'states'; choose one of 'state'"):
        build_model(name, lkm_tap="states")


@pytest.mark.parametrize("name", ["mxmnet", "pamnet"])
@pytest.mark.parametrize("value", [0.0, -1.0, 5.5, float("nan")])
def test_a_local_cutoff_beyond_the_cutoff_is_refused(name, value):
    with pytest.raises(ValueError, match="local_cutoff is"):
        build_model(name, local_cutoff=value)


@pytest.mark.parametrize("name", ["mxmnet", "pamnet"])
def test_sizes_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match="num_layers is 0; it must be an integer from 1"):
        build_model(name, num_layers=0)


def test_the_published_envelope_ends_with_a_slope():
    model = with_published_envelope(small_model("pamnet"))
    basis = model.basis.radial_wide
    distance = torch.tensor([basis.cutoff], dtype=torch.float64, requires_grad=True)
    values = basis(distance)
    assert values.abs().max() < 1e-9
    (slope,) = torch.autograd.grad(values.sum(), distance)
    assert abs(slope.item()) > 1e-3


def score_along(model, atoms, t):
    """Return the first score of atom 0 with all atoms displaced by t Å along one direction."""
    moved = atoms.copy()
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(len(atoms), 3, generator=generator, dtype=torch.float64).numpy()
    moved.positions += t * direction
    out = model(graph_of(moved, model))
    return model.heads[0](out.embeddings[0]).scores[0].item(), moved


def force_jump_at_zero_score(model):
    """Return the relative step of the forces where a score of the fusion changes its sign."""
    atoms = rattled()
    with torch.no_grad():  # a score that is zero at the start and grows on the way
        head = model.heads[0]
        out = model(graph_of(atoms, model))
        features = head(out.embeddings[0]).features[0]
        weight = head.score.weight
        weight -= (weight @ features) / (features @ features) * features
    low, high = -1e-3, 1e-3
    assert score_along(model, atoms, low)[0] * score_along(model, atoms, high)[0] < 0
    forces = [
        energy_and_forces(model, graph_of(score_along(model, atoms, t)[1], model)).forces
        for t in (-1e-8, 1e-8)
    ]
    return relative_error(forces[0], forces[1])


def test_forces_are_continuous_where_a_score_changes_its_sign():
    assert force_jump_at_zero_score(small_model("pamnet")) < 1e-5


def test_control_the_published_leaky_relu_makes_them_jump(monkeypatch):
    def leaky_relu(x):
        return torch.nn.functional.leaky_relu(x, 0.2)

    monkeypatch.setattr("lkm_calc.models.pamnet.smooth_leaky_relu", leaky_relu)
    assert force_jump_at_zero_score(small_model("pamnet")) > 1e-4

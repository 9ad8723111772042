"""The physics battery notices each fault that it is there for, and passes where there is none."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from lkm_calc import EnergyModel, build_model, register_model
from lkm_calc.graph.scatter import count, sum_to
from lkm_calc.models import registry
from lkm_calc.models.energy import AtomOutput
from lkm_calc.nn.geometry import lengths_and_directions
from lkm_calc.nn.layers import AtomEmbedding
from lkm_calc.potential.zbl import HeldGraph
from lkm_calc.testing import CHECKS, PhysicsError, as_if_trained, check_model

from ..support import ROOT, SMALL


class Pairs(EnergyModel):
    """Two layers of sums over neighbours, into which a fault can be put."""

    name = "pairs"
    fault = None

    def __init__(self, cutoff: float = 4.0):
        super().__init__(cutoff, {"cutoff": cutoff})
        self.embedding = AtomEmbedding(8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.register_buffer("unsaved", torch.ones(()), persistent=False)

    def plain(self, graph):
        """Return the output without the fault."""
        r = lengths_and_directions(graph.edge_vectors().to(self.dtype))[0]
        t = (r / self.cutoff).clamp(max=1)
        weights = ((1 - t**3 * (10 - 15 * t + 6 * t**2)) * torch.exp(-r)).unsqueeze(1)
        source, target = graph.edge_index
        x, layers = self.embedding(graph.numbers), []
        for layer in self.layers:
            x = x + sum_to(layer(x).tanh()[source] * weights, target, len(x))
            layers.append(x)
        return AtomOutput(self.unsaved * x.square().sum(1), tuple(layers))

    def atom_output(self, graph):
        output = self.plain(graph)
        return output if self.fault is None else self.fault(graph, output)


class Forgetful(Pairs):
    """Copies have other weights."""

    def __reduce__(self):
        return (Forgetful, ())


def added(size):
    """Return a fault: a number of the graph's is added to each atom's value."""
    return lambda graph, output: output._replace(values=output.values + size(graph))


def scaled(factor):
    return lambda graph, output: output._replace(values=output.values * factor(graph, output))


def edge_sum(graph, lengths, weights=1.0):
    """Return Σ_j w exp(−r²) of each atom."""
    return sum_to(torch.exp(-lengths.square()) * weights, graph.edge_index[1], len(graph.numbers))


def lengths_of(graph):
    return lengths_and_directions(graph.edge_vectors())[0]


def direction_sum(graph, power=0):
    """Return Σ_j u_ij / r^p of each atom, (atoms, 3)."""
    r, u = lengths_and_directions(graph.edge_vectors())
    return sum_to(u * (r**-power).unsqueeze(1), graph.edge_index[1], len(graph.numbers))


def handedness(graph):
    a, b, c = (direction_sum(graph, power) for power in (1, 2, 3))
    return (a * torch.linalg.cross(b, c)).sum(1)


def cell_not_strained(graph):
    fixed = graph if graph.cell is None else replace(graph, cell=graph.cell.detach())
    return edge_sum(graph, lengths_of(fixed))


class Gaussian(torch.autograd.Function):
    """exp(−x²), whose gradient is right but forgets that it depends on x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.exp(-x.square())

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (-2 * x * torch.exp(-x.square())).detach()


def not_twice(graph):
    return sum_to(Gaussian.apply(lengths_of(graph)), graph.edge_index[1], len(graph.numbers))


def from_wrapped_positions(graph):
    """Take each neighbour where it stands and not where its image is."""
    source, target = graph.edge_index
    return edge_sum(graph, (graph.positions[target] - graph.positions[source]).norm(dim=1))


def from_cast_positions(graph, output):
    """Round coordinates far from the origin instead of their differences."""
    source, target = graph.edge_index
    positions = (graph.positions + 1e5).to(output.values.dtype)
    r = (positions[target] - positions[source]).square().sum(1).add(1e-6).sqrt()
    return output._replace(values=output.values + edge_sum(graph, r))


def rooted(weights):
    """Return a fault: a root whose derivative by the weights is infinite."""
    return added(lambda graph: (weights.sum() * 0).sqrt())


def only_nearest(model):
    """Return a fault: neighbours beyond the 32 nearest are dropped, of a graph of molecules."""

    def fault(graph, output):
        r, target = lengths_of(graph), graph.edge_index[1]
        nearer = (target == target[:, None]) & (r < r[:, None])
        kept = nearer.sum(1) < 32
        edges = {"edge_index": graph.edge_index[:, kept], "reverse": graph.reverse[kept]}
        if isinstance(graph, HeldGraph):
            edges["vectors"] = graph.vectors[kept]
        return model.plain(replace(graph, **edges, slot=None))

    return fault


def per_atom_of_the_structure(graph, _output):
    return 1 / count(graph.graph_index, graph.n_graphs)[graph.graph_index]


def indices(graph):
    return torch.arange(len(graph.numbers), dtype=torch.float64)


def noise(graph):
    return torch.rand(len(graph.numbers))


def by_place_of_the_edge(graph):
    return edge_sum(graph, lengths_of(graph), torch.arange(len(graph.reverse)) % 3)


def with_cosine(graph):
    """Fade by a cosine, whose second derivative jumps at the cut-off."""
    r = lengths_of(graph)
    cosine = 1 + torch.cos(torch.pi * r.clamp(max=4.0) / 4.0)
    return sum_to(cosine, graph.edge_index[1], len(graph.numbers))


def one_narrow_layer(graph, output):
    first, last = output.embeddings
    return output._replace(embeddings=(first, last[:, :4]))


FAULTS = [
    ("output", one_narrow_layer),
    ("output", added(noise)),
    ("output", lambda graph, output: output._replace(embeddings=())),
    ("output", lambda graph, output: output._replace(values=output.values.float())),
    ("forces", lambda graph, output: output._replace(values=output.values * 0)),
    ("forces", lambda graph, out: out._replace(values=out.values + out.values.detach() ** 2)),
    ("stress", added(cell_not_strained)),
    ("second derivatives", added(not_twice)),
    ("finite", added(lambda graph: direction_sum(graph).norm(dim=1))),
    ("lone atoms", added(lambda graph: graph.positions[:, 0].sin())),
    ("rotation, translation and parity", added(lambda graph: direction_sum(graph, 1)[:, 0] ** 2)),
    ("rotation, translation and parity", added(lambda graph: graph.positions[:, 0])),
    ("rotation, translation and parity", added(handedness)),
    ("permutation", scaled(lambda graph, _: 1 + 1e-3 * indices(graph))),
    ("order of edges", added(by_place_of_the_edge)),
    ("supercells", scaled(per_atom_of_the_structure)),
    ("periodic images", added(from_wrapped_positions)),
    ("batches", lambda graph, output: output._replace(values=output.values - output.values.mean())),
    ("padding", scaled(lambda graph, _: graph.n_graphs)),
    ("size consistency", scaled(per_atom_of_the_structure)),
    ("longer edges", added(lambda graph: edge_sum(graph, lengths_of(graph)))),
    ("smoothness", added(lambda graph: edge_sum(graph, lengths_of(graph)))),
    ("smoothness", added(with_cosine)),
    ("float32", from_cast_positions),
]
"""Checks and faults that they are there for."""


def test_a_model_without_a_fault_passes():
    check_model(Pairs(), set(CHECKS) - {"file"})


@pytest.mark.parametrize(("check", "fault"), FAULTS, ids=[check for check, _ in FAULTS])
def test_faults_are_noticed(check, fault):
    model = as_if_trained(Pairs())
    CHECKS[check](model)
    model.fault = fault
    with pytest.raises(PhysicsError):
        CHECKS[check](model)


def test_gradients_of_the_weights_that_are_no_numbers_are_noticed():
    model = as_if_trained(Pairs())
    model.fault = rooted(model.layers[0].bias)
    with pytest.raises(PhysicsError, match=r"gradients of layers\.0\.bias are not finite"):
        CHECKS["training"](model)


def test_a_limit_of_neighbours_is_noticed():
    model = as_if_trained(Pairs())
    model.fault = only_nearest(model)
    with pytest.raises(PhysicsError, match="does not depend on 1?[0-9]{3} of 3520 edges"):
        CHECKS["all neighbours"](model)


def test_vectors_that_are_not_the_edges_own_are_noticed():
    model = as_if_trained(Pairs())
    model.fault = lambda graph, output: output._replace(
        values=from_cast_positions(graph, output).values - output.values
    )
    with pytest.raises(PhysicsError, match=r"does not depend on graph\.edge_vectors"):
        CHECKS["all neighbours"](model)


def test_copies_with_other_weights_are_noticed():
    CHECKS["copies"](as_if_trained(Pairs()))
    with pytest.raises(PhysicsError, match="A copy gives a different energy"):
        CHECKS["copies"](as_if_trained(Forgetful()))


def test_what_a_file_loses_is_noticed(monkeypatch):
    with pytest.raises(ValueError, match="'pairs' is not one of the architectures"):
        CHECKS["file"](as_if_trained(Pairs()))
    monkeypatch.setattr(registry.MODELS, "_registered", dict(registry.MODELS.registered))
    register_model(Pairs)
    model = as_if_trained(Pairs())
    CHECKS["file"](model)
    model.unsaved.fill_(1.5)
    with pytest.raises(PhysicsError, match="different after loading"):
        CHECKS["file"](model)


def test_all_failures_are_told_at_once_with_their_numbers():
    model = Pairs()
    model.fault = scaled(per_atom_of_the_structure)
    with pytest.raises(AssertionError) as caught:
        check_model(model, ["permutation", "supercells", "size consistency"])
    first, *lines = str(caught.value).splitlines()
    assert first == "pairs fails 2 of 3 checks:"
    assert lines[0].startswith("supercells: Energy of SiOCH, periodic along abc repeated 2 × 1 × 2")
    assert "the relative difference is 0.75; 1e-10 is allowed" in lines[0]
    assert lines[1].startswith("size consistency: Energy of C2OH6 and OH2 far apart")


def test_errors_of_the_model_are_told_as_failures():
    model = Pairs()
    model.fault = lambda graph, output: output.values[100]
    with pytest.raises(PhysicsError, match="permutation: IndexError: index 100"):
        check_model(model, ["permutation"])


def test_unknown_checks_are_refused():
    with pytest.raises(ValueError, match="no check 'colour'; choose from output, forces"):
        check_model(Pairs(), ["colour"])


@pytest.mark.parametrize("name", SMALL)
def test_as_if_trained_hides_nothing_and_leaves_the_model_as_it_is(name):
    model = build_model(name, **SMALL[name])
    model.calibrate(2.0, {1: -13.0}, [1])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ready = as_if_trained(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(weights.any() for weights in ready.parameters())
    assert ready.dtype == torch.float64
    assert not ready.training
    assert ready.scale == 2.0
    assert not ready.reference_energies.any()
    again, other = as_if_trained(model), as_if_trained(model, seed=1)
    pairs = list(zip(ready.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)


def test_it_needs_no_pytest():
    code = (
        "import sys; sys.modules['pytest'] = None; import lkm_calc; "
        "assert 'lkm_calc.testing' not in sys.modules; import lkm_calc.testing"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

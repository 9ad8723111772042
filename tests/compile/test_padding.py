"""Rows that stand for nothing change nothing."""

import pytest
import torch

from lkm_calc import MODELS, Graph, energy_and_forces
from lkm_calc.compile.padding import Capacity, pad, unpad
from lkm_calc.testing import check_padding

from ..support import ROUND_OFF, crystal, rattled, relative_error, small_model

BATCHES = pytest.mark.parametrize(
    "structures",
    [[rattled()], [rattled("H2"), rattled("C6H6")], [crystal(), crystal(pbc=[True, True, False])]],
    ids=["molecule", "molecules", "crystals"],
)


def prepared(structures, model):
    return model.prepare(Graph.collate([Graph.from_atoms(a, model.cutoff) for a in structures]))


@BATCHES
@pytest.mark.parametrize("spare", [0.0, 0.4])
@pytest.mark.parametrize("name", MODELS)
def test_results_are_those_without_padding(name, spare, structures):
    model = small_model(name)
    graph = prepared(structures, model)
    capacity = Capacity.of(graph, spare)
    padded = pad(graph, capacity, model.cutoff)
    sizes = (len(padded.numbers), padded.edge_index.shape[1], padded.max_neighbours)
    assert sizes == capacity[:3]
    if graph.local is not None:
        assert (len(padded.local.edges), len(padded.local.first)) == capacity[3:]
    check_padding(model, structures, spare)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_weights_are_those_without_padding(name):
    model = small_model(name)
    graph = prepared([rattled(), rattled("H2O")], model)
    gradients = []
    for spare in (None, 0.3):
        given = graph if spare is None else pad(graph, Capacity.of(graph, spare), model.cutoff)
        out = unpad(energy_and_forces(model, given, create_graph=True), 2, len(graph.numbers))
        loss = out.energy.sum() + out.forces.square().sum() + out.embeddings[-1].sum()
        found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert relative_error(gradients[1], gradients[0]) < ROUND_OFF


@pytest.mark.parametrize("name", MODELS)
def test_reverse_edges_stay_reverse(name):
    model = small_model(name)
    graph = prepared([rattled()], model)
    padded = pad(graph, Capacity.of(graph, 0.5), model.cutoff)
    assert torch.equal(padded.edge_index[:, padded.reverse], padded.edge_index.flip(0))
    if padded.local is not None:
        edges, reverse = padded.local.edges, padded.local.reverse
        assert torch.equal(edges[reverse], padded.reverse[edges])


def test_a_graph_too_large_is_refused():
    model = small_model()
    graph = prepared([rattled()], model)
    least = Capacity.of(graph)
    assert least.holds(graph)
    small = least._replace(edges=least.edges - 2)
    assert not small.holds(graph)
    with pytest.raises(ValueError, match="needs Capacity"):
        pad(graph, small, model.cutoff)
    assert small.joined(least) == least

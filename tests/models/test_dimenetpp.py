"""DimeNet++ against torch-geometric's, and its angular sum against the plain sum over triplets."""

import math

import ase.io
import pytest
import torch
from ase.build import molecule
from scipy.special import eval_legendre

from benchmarks import pyg
from lkm_calc import Graph, build_model, energy_and_forces
from lkm_calc.nn import angular
from lkm_calc.nn.angular import AngularBasis
from lkm_calc.nn.basis import SphericalBesselBasis
from lkm_calc.nn.geometry import lengths_and_directions

from ..support import (
    ROUND_OFF,
    crystal,
    graph_of,
    rattled,
    relative_error,
    shared_data,
    small_model,
)

PYG_NAMES = {
    "radial_basis.frequencies": "rbf.freq",
    "embedding.atoms.": "emb.emb.",
    "embedding.radial.": "emb.lin_rbf.",
    "embedding.dense.": "emb.lin.",
    "rbf_in.": "lin_rbf1.",
    "rbf_out.": "lin_rbf2.",
    "sbf_in.": "lin_sbf1.",
    "sbf_out.": "lin_sbf2.",
    "from_kj.": "lin_kj.",
    "from_ji.": "lin_ji.",
    "before_skip.": "layers_before_skip.",
    "after_skip.": "layers_after_skip.",
    "down.": "lin_down.",
    ".up.": ".lin_up.",
    ".first.": ".lin1.",
    ".second.": ".lin2.",
}


def pyg_name(name):
    """Return the name in torch-geometric's DimeNetPlusPlus of one of our parameters."""
    for ours, theirs in PYG_NAMES.items():
        name = name.replace(ours, theirs)
    if name.startswith("outputs."):
        name = name.replace("outputs.", "output_blocks.").replace(".rbf.", ".lin_rbf.")
        return name.replace(".dense.", ".lins.").replace(".value.", ".lin.")
    return name.replace("interactions.", "interaction_blocks.").replace(".dense.", ".lin.")


def triplets(graph):
    """Return the edges kj and ji of every triplet k → j → i, where kj is not ji backwards."""
    source, target = graph.edge_index
    joined = target.unsqueeze(1) == source.unsqueeze(0)
    joined[torch.arange(len(source)), graph.reverse] = False
    return joined.nonzero().unbind(1)


@pytest.fixture(scope="module")
def pair():
    """Our model and torch-geometric's with the same weights, float64, all of full size."""
    torch.manual_seed(0)
    theirs = pyg.dimenetpp().double()
    ours = build_model("dimenet++").double()
    weights = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(weights.pop(pyg_name(name)))
    assert not weights, "every one of their parameters has its counterpart"
    return ours, theirs


@pytest.mark.parametrize("name", ["CH3CH2OH", "C6H6", "HCN"])
def test_equals_torch_geometric(pair, name):
    # Their zeros of the spherical Bessel functions are rounded to float32 (dimenet_utils.Jn_zeros),
    # which alone leaves 4e-8 of the energy between the two. Linear and planar molecules included:
    # first derivatives of their atan2 are defined except at exactly collinear triplets, hence the
    # displaced atoms.
    ours, theirs = pair
    graph = Graph.from_atoms(rattled(name), 5.0)
    energy, forces = pyg.energy_and_forces(theirs, graph)
    out = energy_and_forces(ours, graph)
    assert relative_error(out.energy, energy) < 1e-5
    assert relative_error(out.forces, forces) < 1e-5


def test_equals_torch_geometric_on_aspirin(pair):
    ours, theirs = pair
    graph = Graph.from_atoms(ase.io.read(shared_data("structures/aspirin.xyz")), 5.0)
    energy, forces = pyg.energy_and_forces(theirs, graph)
    out = energy_and_forces(ours, graph)
    assert relative_error(out.energy, energy) < 1e-5
    assert relative_error(out.forces, forces) < 1e-5


def test_parameter_count():
    assert sum(p.numel() for p in build_model("dimenet++").parameters()) == 1_885_830


BOTH_FORMS = pytest.mark.parametrize("few", [0, 1000], ids=["many neighbours", "few neighbours"])


def plain_angular_sum(graph, directions, radial, x, weight):
    """Return Σ over triplets of sbf(r_kj, α) W ⊙ x_kj, written out with Legendre polynomials."""
    kj, ji = triplets(graph)
    cosine = (directions[kj] * directions[ji]).sum(1)
    result = torch.zeros_like(x)
    for degree in range(radial.shape[1]):
        norm = math.sqrt((2 * degree + 1) / (4 * math.pi))
        zonal = norm * torch.from_numpy(eval_legendre(degree, cosine.numpy()))
        terms = (radial[kj, degree] @ weight[degree]) * x[kj] * zonal.unsqueeze(1)
        result.index_add_(0, ji, terms)
    return result


@pytest.mark.parametrize(
    "atoms",
    [rattled(), molecule("CO2"), molecule("C6H6"), crystal()],
    ids=["molecule", "linear", "planar", "cell smaller than the cut-off"],
)
@BOTH_FORMS
def test_angular_sum_equals_the_sum_over_triplets(atoms, few, monkeypatch):
    monkeypatch.setattr(angular, "FEW_NEIGHBOURS", few)
    graph = Graph.from_atoms(atoms, 5.0)
    distances, directions = lengths_and_directions(graph.edge_vectors())
    radial = SphericalBesselBasis(7, 6, 5.0, 6).double()(distances)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(distances), 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 6, 5, generator=generator, dtype=torch.float64)
    found = AngularBasis(7).double()(graph, directions, radial).of(x, weight)
    expected = plain_angular_sum(graph, directions, radial, x, weight)
    assert relative_error(found, expected) < ROUND_OFF


@pytest.mark.parametrize("atoms", [rattled(), crystal()], ids=["molecule", "crystal"])
def test_all_forms_of_the_angular_sum_have_the_same_derivatives(atoms, monkeypatch):
    model = small_model()
    graph, results = graph_of(atoms, model), []
    for few, many_rows in ((0, 1000), (1000, 1000), (0, 0)):
        monkeypatch.setattr(angular, "FEW_NEIGHBOURS", few)
        monkeypatch.setattr(angular, "MANY_ROWS", many_rows)
        monkeypatch.setattr(angular, "BLOCK_ROWS", 2 * graph.max_neighbours)
        out = energy_and_forces(model, graph, create_graph=True)
        loss = out.forces.square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        results.append((out.energy, out.forces, torch.cat([g.flatten() for g in gradients])))
    for one, two, three in zip(*results, strict=True):
        assert relative_error(two, one) < ROUND_OFF
        assert relative_error(three, one) < ROUND_OFF


def test_embeddings_are_one_a_block_and_one_for_the_start():
    model = small_model()
    embeddings = model(graph_of(rattled(), model)).embeddings
    assert [tuple(e.shape) for e in embeddings] == [(9, 16)] * 3

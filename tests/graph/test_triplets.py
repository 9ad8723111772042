"""Edges within a radius and the pairs of them, against loops."""

import ase
import pytest
import torch
from ase.build import molecule

from lkm_calc import Graph
from lkm_calc.graph.triplets import edge_pairs, local_indices

from ..support import crystal, rattled

STRUCTURES = pytest.mark.parametrize("atoms", [rattled(), crystal()], ids=["molecule", "crystal"])


def rows(graph):
    """Return a comparable description of each edge: ends and vector."""
    vectors = graph.edge_vectors().numpy().round(9) + 0.0
    return [(*e, *v) for e, v in zip(graph.edge_index.T.tolist(), vectors.tolist(), strict=True)]


@STRUCTURES
def test_local_edges_are_those_of_a_shorter_neighbour_list(atoms):
    graph = Graph.from_atoms(atoms, 5.0)
    local = local_indices(graph, 2.7)
    described = rows(graph)
    assert sorted(described[k] for k in local.edges) == sorted(rows(Graph.from_atoms(atoms, 2.7)))
    assert torch.equal(local.edges[local.reverse], graph.reverse[local.edges])


@STRUCTURES
def test_pairs_are_those_of_a_double_loop(atoms):
    targets = Graph.from_atoms(atoms, 3.5).edge_index[1]
    first, second = edge_pairs(targets, len(atoms))
    expected = {
        (a, b) for a, i in enumerate(targets) for b, j in enumerate(targets) if i == j and a != b
    }
    assert len(first) == len(expected)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected


def test_two_hop_angles_compare_images_not_indices():
    chain = ase.Atoms("C", cell=[1.4, 9, 9], pbc=[True, False, False])
    local = local_indices(Graph.from_atoms(chain, 5.0), 1.5)
    assert len(local.edges) == 2  # to the image on either side
    # Straight on through the atom is an angle, back to the image one came from is none.
    turned = local.reverse[local.second]
    assert sorted(zip(local.first.tolist(), turned.tolist(), strict=True)) == [(0, 0), (1, 1)]


def test_a_pair_of_atoms_and_a_single_one_have_no_angles():
    for atoms in (ase.Atoms("H"), molecule("H2")):
        assert len(local_indices(Graph.from_atoms(atoms, 5.0), 5.0).first) == 0


def test_three_edges_of_methane_hydrogens():
    local = local_indices(Graph.from_atoms(molecule("CH4"), 5.0), 1.3)
    assert len(local.first) == 4 * 3  # at the carbon alone

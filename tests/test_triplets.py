"""Edges within a radius and the pairs of them, against loops."""

import ase
import pytest
import torch
from ase.build import molecule

from lkm_calc import Graph
from lkm_calc.triplets import EdgePairs, Edges

from .support import crystal, rattled


def edges_of(atoms, cutoff=5.0):
    return Edges.from_graph(Graph.from_atoms(atoms, cutoff), torch.float64)


def rows(edges):
    """Return a comparable description of each edge: ends and direction."""
    ends = zip(edges.source.tolist(), edges.target.tolist(), strict=True)
    vectors = (edges.directions * edges.distances.unsqueeze(1)).numpy().round(9) + 0.0
    return [(*pair, *vector) for pair, vector in zip(ends, vectors.tolist(), strict=True)]


@pytest.mark.parametrize("atoms", [rattled(), crystal()], ids=["molecule", "crystal"])
def test_within_a_radius_equals_a_shorter_neighbour_list(atoms):
    kept, expected = edges_of(atoms).within(2.7), edges_of(atoms, 2.7)
    assert sorted(rows(kept)) == sorted(rows(expected))
    assert torch.equal(kept.source[kept.reverse], kept.target)
    assert torch.equal(kept.directions[kept.reverse], -kept.directions)


@pytest.mark.parametrize("atoms", [rattled(), crystal()], ids=["molecule", "crystal"])
def test_pairs_are_those_of_a_double_loop(atoms):
    edges = edges_of(atoms, 3.5)
    first, second = EdgePairs.from_edges(edges, len(atoms))
    targets = edges.target.tolist()
    expected = {
        (a, b) for a, i in enumerate(targets) for b, j in enumerate(targets) if i == j and a != b
    }
    assert len(first) == len(expected)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected


def test_two_hop_angles_compare_images_not_indices():
    chain = ase.Atoms("C", cell=[1.4, 9, 9], pbc=[True, False, False])
    edges = edges_of(chain, 1.5)
    assert len(edges.source) == 2  # to the image on either side
    first, second = EdgePairs.from_edges(edges, 1)
    # Straight on through the atom is an angle, back to the image one came from is none.
    assert sorted(zip(first.tolist(), edges.reverse[second].tolist(), strict=True)) == [
        (0, 0),
        (1, 1),
    ]


def test_a_pair_of_atoms_and_a_single_one_have_no_angles():
    for atoms in (ase.Atoms("H"), molecule("H2")):
        assert len(EdgePairs.from_edges(edges_of(atoms), len(atoms)).first) == 0


def test_three_edges_of_methane_hydrogens():
    edges = edges_of(molecule("CH4"), 1.3)
    first, _ = EdgePairs.from_edges(edges, 5)
    assert len(first) == 4 * 3  # at the carbon alone

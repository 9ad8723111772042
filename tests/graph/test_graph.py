import ase
import numpy as np
import pytest
import torch

from lkm_calc import Graph

from ..support import crystal, rattled


def test_a_molecule():
    atoms = rattled()
    graph = Graph.from_atoms(atoms, 5.0)
    assert graph.numbers.tolist() == atoms.numbers.tolist()
    assert graph.positions.dtype == torch.float64
    assert graph.cell is None
    assert graph.edge_index.shape == (2, 72)
    lengths = graph.edge_vectors().norm(dim=1)
    j, i = graph.edge_index.numpy()
    np.testing.assert_allclose(lengths, atoms.get_all_distances()[j, i], atol=1e-12)


def test_periodic_edges_reach_images():
    atoms = crystal()
    graph = Graph.from_atoms(atoms, 5.0)
    lengths = graph.edge_vectors().norm(dim=1)
    assert (lengths <= 5.0).all()
    assert (graph.edge_index[0] == graph.edge_index[1]).any(), "an atom sees its own images"


def test_collate_keeps_molecules_and_crystals_apart():
    parts = [Graph.from_atoms(a, 5.0) for a in (rattled(), crystal(), rattled("H2O"))]
    joined = Graph.collate(parts)
    assert joined.n_graphs == 3
    assert torch.equal(joined.edge_vectors(), torch.cat([g.edge_vectors() for g in parts]))
    source, target = joined.edge_index
    assert torch.equal(joined.graph_index[source], joined.graph_index[target])
    assert torch.equal(joined.edge_index[:, joined.reverse], joined.edge_index.flip(0))


def test_collate_of_collated():
    parts = [Graph.from_atoms(rattled(seed=s), 5.0) for s in range(3)]
    nested = Graph.collate([Graph.collate(parts[:2]), parts[2]])
    flat = Graph.collate(parts)
    for name in ("numbers", "edge_index", "reverse", "graph_index"):
        assert torch.equal(getattr(nested, name), getattr(flat, name))


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (ase.Atoms(), "no atoms"),
        (ase.Atoms("H2", [[0, 0, 0], [np.nan, 0, 0]]), "positions is not finite in row.*1"),
        (ase.Atoms("H2", [[0, 0, 0], [0, 0, 0]]), "Atoms 0 and 1 have the same position|Atoms 1"),
        (ase.Atoms("H", [[0, 0, 0]], pbc=True), "zero"),
        (ase.Atoms("H", [[0, 0, 0]], cell=[np.inf, 5, 5], pbc=True), "cell is not finite"),
    ],
    ids=["empty", "nan", "same spot", "no cell", "infinite cell"],
)
def test_unusable_structures(atoms, message):
    with pytest.raises(ValueError, match=message):
        Graph.from_atoms(atoms, 5.0)


def test_collate_of_nothing():
    with pytest.raises(ValueError, match="at least one"):
        Graph.collate([])

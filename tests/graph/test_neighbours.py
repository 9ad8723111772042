import ase
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from lkm_calc.graph.neighbours import neighbour_list

from ..support import crystal, rattled


def vectors(edges, atoms):
    source, target = edges.edge_index
    moved = edges.shifts @ np.asarray(atoms.cell)
    return atoms.positions[target] - atoms.positions[source] + moved


@pytest.mark.parametrize("pbc", [(True,) * 3, (True, False, True), (False,) * 3])
@pytest.mark.parametrize("cutoff", [2.5, 9.0])
def test_same_pairs_as_ase(pbc, cutoff):
    atoms = crystal()
    atoms.pbc = pbc
    edges = neighbour_list(atoms.positions, cutoff, atoms.cell, pbc)
    i, j, shift = neighbor_list("ijS", atoms, cutoff)
    ours = set(map(tuple, np.column_stack([edges.edge_index.T, edges.shifts]).tolist()))
    theirs = set(map(tuple, np.column_stack([i, j, shift]).tolist()))
    assert ours == theirs
    assert len(ours) == len(i)


@pytest.mark.parametrize("atoms", [crystal(), rattled()], ids=["crystal", "molecule"])
def test_reverse_is_the_same_pair_backwards(atoms):
    edges = neighbour_list(atoms.positions, 6.0, atoms.cell, atoms.pbc)
    d = vectors(edges, atoms)
    np.testing.assert_allclose(d[edges.reverse], -d, atol=1e-12)
    assert np.array_equal(edges.edge_index[:, edges.reverse], edges.edge_index[::-1])
    assert np.array_equal(edges.reverse[edges.reverse], np.arange(len(d)))
    assert (np.linalg.norm(d, axis=1) <= 6.0).all()


def test_no_cap_on_neighbours():
    points = np.random.default_rng(0).normal(size=(80, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    edges = neighbour_list(points, 2.5)
    assert edges.edge_index.shape[1] == 80 * 79


def test_sorted_by_target():
    atoms = crystal()
    target = neighbour_list(atoms.positions, 6.0, atoms.cell, atoms.pbc).edge_index[1]
    assert (np.diff(target) >= 0).all()


@pytest.mark.parametrize(
    ("cell", "pbc", "far", "message"),
    [
        (None, False, [1e4, 1e4, 0], "spread over 1e\\+04 Å.*diverged"),
        (None, False, [1e7, 0, 0], "spread over 1e\\+07 Å.*diverged"),
        ([4, 4, 1], [True, True, False], [0, 0, 1e5], "spread over 1e\\+05 Å"),
        ([[4, 0, 0], [4, 0, 0], [0, 0, 4]], True, [2, 0, 0], "flat"),
    ],
)
def test_exploded_structures_are_refused_not_a_crash(cell, pbc, far, message):
    atoms = ase.Atoms("H2", [[0, 0, 0], far], cell=cell, pbc=pbc)
    with pytest.raises(ValueError, match=message):
        neighbour_list(atoms.positions, 5.0, atoms.cell.complete(), atoms.pbc)


def test_distant_molecules_and_large_cells_are_fine():
    assert neighbour_list([[0, 0, 0], [900.0, 0, 0], [0, 1.0, 0]], 5.0).edge_index.shape[1] == 2
    box = np.diag([4.0, 200.0, 200.0])
    assert neighbour_list([[0.0, 0, 0]], 5.0, box, (True,) * 3).edge_index.shape[1] == 2


def test_one_atom_has_no_edges():
    edges = neighbour_list(np.zeros((1, 3)), 5.0)
    assert edges.edge_index.shape == (2, 0)
    assert edges.reverse.shape == (0,)

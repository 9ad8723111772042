from dataclasses import replace

import ase
import numpy as np
import pytest
import torch

from lkm_calc import Graph
from train.data import loader
from train.data.edges import edges_of
from train.data.frames import DataError, Frames
from train.data.loader import GraphFrames, epoch_order

from ...support import crystal, rattled, small_model

MODEL = small_model()


def frames_of(structures):
    sizes = [len(a) for a in structures]
    positions = np.concatenate([a.positions for a in structures])
    return Frames(
        numbers=np.concatenate([a.numbers for a in structures]),
        positions=positions,
        forces=-positions,
        energies=np.arange(len(structures)) * 1.0,
        starts=np.concatenate([[0], np.cumsum(sizes)]),
    )


def assert_same(graph, expected):
    """Compare graphs, what a model found in them included."""
    for name, value in vars(expected).items():
        found = getattr(graph, name)
        assert type(found) is type(value), name
        if isinstance(value, torch.Tensor):
            assert torch.equal(found, value), name
        elif isinstance(value, tuple):
            assert all(map(torch.equal, found, value)), name
        else:
            assert found == value, name


@pytest.mark.parametrize("name", ["mxmnet", "pamnet"])
def test_the_local_edges_of_a_batch_are_those_of_its_graph(name, monkeypatch):
    monkeypatch.setattr(loader, "FRAMES_AT_ONCE", 2)
    structures = [rattled(), ase.Atoms("C"), rattled("H2O"), rattled("C6H6"), rattled("H2")]
    model = small_model(name)
    data = GraphFrames(frames_of(structures), model, torch.device("cpu"))
    picked = [3, 1, 0, 3, 4]
    graph = data.batch(torch.tensor(picked)).graph
    expected = Graph.collate([Graph.from_atoms(structures[k], 5.0) for k in picked])
    assert_same(graph, model.prepare(expected))
    assert len(graph.local.first) > 0


def test_a_batch_is_the_collated_graph_of_its_frames():
    structures = [rattled(), rattled("H2O"), ase.Atoms("C"), rattled("C6H6")]
    data = GraphFrames(frames_of(structures), MODEL, torch.device("cpu"))
    picked = [3, 2, 0, 3]
    graph, energies, forces, stress, sizes, atoms, *_ = data.batch(torch.tensor(picked))
    expected = Graph.collate([Graph.from_atoms(structures[k], 5.0) for k in picked])
    assert_same(graph, expected)
    assert energies.tolist() == [3, 2, 0, 3]
    assert torch.equal(forces, -expected.positions)
    assert stress is None
    assert (sizes.tolist(), atoms) == ([12, 1, 9, 12], 34)


def test_periodic_frames_beside_molecules():
    structures = [crystal(), rattled("H2O"), crystal(pbc=[True, False, True])]
    structures[2].cell[1] = 0  # a slab without a third vector
    cells = np.stack([a.cell.array for a in structures])
    stress = np.stack([np.eye(3), np.full((3, 3), np.nan), np.eye(3)])
    frames = replace(
        frames_of(structures), cells=cells, pbc=np.stack([a.pbc for a in structures]), stress=stress
    )
    data = GraphFrames(frames, MODEL, torch.device("cpu"))
    batch = data.batch(torch.tensor([1, 2, 0]))
    expected = Graph.collate([Graph.from_atoms(structures[k], 5.0) for k in (1, 2, 0)])
    assert_same(batch.graph, expected)
    assert batch.totals() == data.totals(torch.tensor([1, 2, 0])) == (3, 11, 2, 11)
    assert batch.stress[1].tolist() == np.eye(3).tolist()


def test_stress_of_molecules_is_no_label():
    frames = replace(frames_of([rattled("H2O")]), stress=np.zeros((1, 3, 3)))
    assert GraphFrames(frames, MODEL, torch.device("cpu")).stress is None


def test_frames_that_cannot_be_searched_are_named():
    crystals = [crystal(), crystal()]
    crystals[1].positions[1] = crystals[1].positions[0] + crystals[1].cell[0] + 1e-9
    cells, pbc = (np.stack([getattr(a, n) for a in crystals]) for n in ("cell", "pbc"))
    frames = replace(frames_of(crystals), cells=cells, pbc=pbc)
    with pytest.raises(DataError, match="Selected frame 1: two atoms, or an atom and an im"):
        GraphFrames(frames, MODEL, torch.device("cpu"))
    apart = frames_of([rattled(), rattled()])
    apart.positions[9] += 1e5
    with pytest.raises(DataError, match="Selected frame 1: The atoms spread over"):
        GraphFrames(apart, MODEL, torch.device("cpu"))


def test_consecutive_batches_cover_everything_once():
    data = GraphFrames(frames_of([rattled("H2O")] * 7), MODEL, torch.device("cpu"))
    assert torch.cat(list(data.in_order(3))).tolist() == list(range(7))


def test_epoch_order_is_a_function_of_seed_and_epoch():
    order = epoch_order(50, seed=1, epoch=4)
    assert sorted(order.tolist()) == list(range(50))
    assert torch.equal(order, epoch_order(50, seed=1, epoch=4))
    assert not torch.equal(order, epoch_order(50, seed=1, epoch=5))
    assert not torch.equal(order, epoch_order(50, seed=2, epoch=4))


def test_a_slab_without_a_third_vector_has_the_edges_of_one_with_it():
    slab, bare = (crystal(pbc=[True, True, False]) for _ in range(2))
    bare.cell[2] = 0
    found = []
    for atoms in (slab, bare):
        cells, pbc = atoms.cell.array[None], atoms.pbc[None]
        found.append(edges_of(replace(frames_of([atoms]), cells=cells, pbc=pbc), 0, 3.0))
    assert np.array_equal(found[0].edges.edge_index, found[1].edges.edge_index)
    assert np.allclose(found[0].vectors, found[1].vectors)
    assert len(found[0].vectors) > 0

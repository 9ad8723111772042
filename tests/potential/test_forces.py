"""What energy_and_forces returns and refuses; that it is right stands in test_physics.py."""

import pytest

from lkm_calc import energy_and_forces

from ..support import graph_of, rattled, small_model


def test_graph_is_kept_only_when_asked_for():
    model = small_model()
    graph = graph_of(rattled("H2O"), model)
    for keep in (False, True):
        out = energy_and_forces(model, graph, create_graph=keep)
        tensors = [out.energy, out.forces, out.atom_energies, *out.embeddings]
        assert [t.requires_grad for t in tensors] == [keep] * len(tensors)
    assert not graph.positions.requires_grad


def test_stress_needs_a_cell():
    model = small_model()
    with pytest.raises(ValueError, match="no cell"):
        energy_and_forces(model, graph_of(rattled(), model), stress=True)

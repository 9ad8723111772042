"""Which way forces are computed, and what all of them have in common."""

import pytest
import torch

from lkm_calc import Graph, energy_and_forces, with_zbl
from lkm_calc.compile import ForceFunction, force_function
from lkm_calc.compile.kernel_forces import KernelForces
from lkm_calc.compile.programs import ProgramForces
from lkm_calc.compile.protocol import UncompiledForces

from ..support import graph_of, rattled, small_model

CASES = [
    (small_model, {}, KernelForces),
    (lambda: with_zbl(small_model("ace"), {"H-H": 0.5}), {}, KernelForces),
    (lambda: small_model().half(), {}, ProgramForces),
    (lambda: small_model().half(), {"batches": True}, UncompiledForces),
    (small_model, {"batches": True}, KernelForces),
    (small_model, {"compile": False}, UncompiledForces),
]


@pytest.mark.parametrize(("make", "options", "kind"), CASES)
def test_the_fastest_way_is_chosen(make, options, kind):
    found = force_function(make(), **options)
    assert type(found) is kind
    assert isinstance(found, ForceFunction)
    assert found.compiles == (kind is not UncompiledForces)
    assert not found.used


def test_programs_leave_several_structures_to_the_model(monkeypatch):
    monkeypatch.setattr(ProgramForces, "_choice", None)  # calling it would fail
    model = small_model()
    forces = ProgramForces(model)
    graph = Graph.collate([graph_of(rattled(), model), graph_of(rattled("H2O"), model)])
    assert torch.equal(forces(graph).forces, energy_and_forces(model, graph).forces)
    assert not forces.used

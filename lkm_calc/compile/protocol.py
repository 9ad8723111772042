"""Interface of all force functions, and the one without compilation."""

import logging
import math
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ..files import CompileError
from ..graph import Graph
from ..models import EnergyModel
from ..potential import EnergyForces, energy_and_forces
from ..runtime import fast_matmul, own_settings, threads_for

logger = logging.getLogger("lkm_calc")

TOLERANCE = 1e-4
"""Maximum difference between compiled and uncompiled forces in eV/Å, and between energies per atom
in eV; scaled up in proportion if forces exceed 10 eV/Å. float32 round-off is a tenth of it."""
TRIALS = 3
"""Number of timed calls of compiled and uncompiled code, to select the faster one."""


Compute = Callable[[Graph, bool], EnergyForces]
"""Energy and forces of a graph, and its stress if requested."""


@runtime_checkable
class ForceFunction(Protocol):
    """Computes energy and forces of one model, whose weights must not change."""

    used: bool
    """Whether compiled code was used in the last call."""

    @property
    def compiles(self) -> bool:
        """Whether there is or will be compiled code; permanently False after a failure."""

    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return energy, forces and stress as in :func:`lkm_calc.energy_and_forces`.

        Args:
            graph: On the CPU.
            stress: Whether to compute the stress.
        """


class UncompiledForces:
    """Energy and forces from the model and autograd, for any graph, model and device.

    Args:
        model: On its device.
    """

    compiles = used = False

    def __init__(self, model: EnergyModel) -> None:
        self.model = model

    @own_settings
    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return energies, forces and stress (eV, eV/Å, eV/Å³) of a graph on the CPU."""
        edges = graph.edge_index.shape[1]
        with fast_matmul(edges), threads_for(edges):
            return energy_and_forces(self.model, graph.to(self.model.device), stress=stress)


def check(found: EnergyForces, expected: EnergyForces) -> None:
    """Raise a CompileError if compiled and uncompiled results differ by more than the tolerance."""
    allowed = TOLERANCE * max(1.0, expected.forces.abs().max().item() / 10)
    off = (found.forces - expected.forces).abs().max().item()
    energy_off = (found.energy - expected.energy).abs().max().item()
    if not max(off, energy_off / len(found.forces)) <= allowed:
        raise CompileError(
            f"the compiled forces are off by {off:.2g} eV/Å and the energy by {energy_off:.2g} eV, "
            f"more than the tolerance of {allowed:.2g}. Please report this with the versions of "
            "torch and of the compiler."
        )


def is_faster(compiled: Compute, uncompiled: Compute, graph: Graph, stress: bool) -> bool:
    """Compare the best of several alternating timings; log if compiled code is not faster."""
    best = [math.inf, math.inf]
    for _ in range(TRIALS):
        for k, compute in enumerate((compiled, uncompiled)):
            began = time.perf_counter()
            compute(graph, stress).forces.cpu()  # synchronises with a GPU
            best[k] = min(best[k], time.perf_counter() - began)
    if best[0] >= best[1]:
        logger.warning(
            "Computing %d atoms without the compiled program, which takes %.1f ms per call; "
            "the uncompiled model takes %.1f ms.",
            len(graph.numbers),
            1e3 * best[0],
            1e3 * best[1],
        )
    return best[0] < best[1]

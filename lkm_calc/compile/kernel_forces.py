"""Energy and forces from the C++ kernel of an architecture: :mod:`lkm_calc.compile.kernels`."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import CompileError
from ..graph import Graph
from ..models import EnergyModel
from ..potential import EnergyForces
from ..runtime import own_settings
from .kernels import Kernel, ZBLKernel, kernel_of
from .protocol import UncompiledForces, check, is_faster

CHECKED = 200
"""Maximum number of atoms of the first structure on which a kernel is checked."""


class KernelForces:
    """Energy and forces of a model from the C++ kernel of its architecture.

    Supports structures of any size and batches. On the first call, the results and the speed of
    the kernel are compared with the uncompiled computation on at most :data:`CHECKED` atoms. If
    there is no compiler, or the results differ, a single warning is issued and the kernel is not
    used. It is not used either, with a log message, if it is not faster.

    Args:
        model: A model that has a kernel, with or without short-range repulsion (ZBL); its weights
            must not change afterwards.
        folder: Cache folder, by default :func:`lkm_calc.files.cache_folder`.
    """

    def __init__(self, model: EnergyModel, folder: Path | None = None) -> None:
        self.model = model
        self.folder = folder
        self.uncompiled = UncompiledForces(model)
        self.kernel: Kernel | ZBLKernel | None = None
        self.failed = False
        self.used = False

    @property
    def compiles(self) -> bool:
        """Whether the kernel can be used; True before the first call."""
        return not self.failed

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the kernel from copies, which load it themselves."""
        return vars(self) | {"kernel": None}

    @own_settings
    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return energy, forces and stress as in :func:`lkm_calc.energy_and_forces`.

        Args:
            graph: On the CPU.
            stress: Whether to compute the stress.
        """
        if self.kernel is None and not self.failed:
            self._start(first_atoms(graph, CHECKED), stress)
        self.used = self.kernel is not None
        if self.kernel is None:
            return self.uncompiled(graph, stress)
        return self.kernel(graph, stress)

    def _start(self, graph: Graph, stress: bool) -> None:
        """Load the kernel and compare it with the uncompiled computation on a graph."""
        self.failed = True
        try:
            kernel = kernel_of(self.model, self.folder)
            check(kernel(graph, stress), self.uncompiled(graph, stress))
        except CompileError as error:
            warnings.warn(f"Computing without compilation: {error}", stacklevel=3)
            return
        if self._is_faster(kernel, graph, stress):
            self.kernel, self.failed = kernel, False

    def _is_faster(self, kernel: Kernel | ZBLKernel, graph: Graph, stress: bool) -> bool:
        return is_faster(kernel, self.uncompiled, graph, stress)


def first_atoms(graph: Graph, atoms: int) -> Graph:
    """Return the unprepared graph of the first atoms; the graph itself if it has no more."""
    if len(graph.numbers) <= atoms:
        return graph
    kept = (graph.edge_index < atoms).all(0)
    place = kept.cumsum(0) - 1
    structures = int(graph.graph_index[atoms - 1]) + 1
    return replace(
        graph,
        numbers=graph.numbers[:atoms],
        positions=graph.positions[:atoms],
        edge_index=graph.edge_index[:, kept],
        reverse=place[graph.reverse[kept]],
        graph_index=graph.graph_index[:atoms],
        n_graphs=structures,
        shifts=None if graph.shifts is None else graph.shifts[kept],
        cell=None if graph.cell is None else graph.cell[:structures],
        slot=None,
        max_neighbours=None,
        local=None,
    )

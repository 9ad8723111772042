"""Energy and forces by the C++ kernel of an architecture: :mod:`lkm_calc.compile.kernels`."""

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
"""Atoms of the first structure on which a kernel is checked."""


class KernelForces:
    """Energy and forces of a model by the kernel that is written for its architecture.

    It computes structures of any size, and several at once. Before the first of them the kernel is
    compared with the uncompiled computation, its numbers and its speed, on at most
    :data:`CHECKED` atoms. Where there is no compiler, or the numbers differ, one warning says so,
    and everything is computed without the kernel; so it is, with a line in the log, where the
    kernel is no faster.

    Args:
        model: One that has a kernel, with or without short-range repulsion (ZBL); its weights must
            stay as they are.
        folder: Where the kernel is kept, that of :func:`lkm_calc.files.cache_folder` if not
            given.
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
        """Whether the kernel can be used, as far as is known."""
        return not self.failed

    def __getstate__(self) -> dict[str, Any]:
        """Leave the kernel out of copies, which load their own."""
        return vars(self) | {"kernel": None}

    @own_settings
    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return what :func:`lkm_calc.energy_and_forces` returns, for a graph on the CPU."""
        if self.kernel is None and not self.failed:
            self._start(first_atoms(graph, CHECKED), stress)
        self.used = self.kernel is not None
        if self.kernel is None:
            return self.uncompiled(graph, stress)
        return self.kernel(graph, stress)

    def _start(self, graph: Graph, stress: bool) -> None:
        """Load the kernel and compare it on a graph."""
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
    """Return the graph of the first atoms alone, prepared for nothing; itself if it has no more."""
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

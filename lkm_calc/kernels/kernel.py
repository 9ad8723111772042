"""A model's energy and forces by the kernel of its architecture."""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..ambient import own_settings
from ..energy import EnergyModel
from ..forces import EnergyForces, volumes
from ..graph import Graph
from ..models import DimeNetPP, MXMNet, PAMNet
from ..scatter import sum_to
from ..threads import threads_worth
from . import dimenetpp, mxmnet, pamnet
from .build import library
from .interface import Interface

INTERFACES: Mapping[type[EnergyModel], Interface] = MappingProxyType(
    {
        DimeNetPP: dimenetpp.INTERFACE,
        MXMNet: mxmnet.INTERFACE,
        PAMNet: pamnet.INTERFACE,
    }
)
"""The architectures that have a kernel."""

_TYPES = {torch.float32: "float", torch.float64: "double"}
_MEMORY, _ORDER = 1, 2
"""What a call returns if something is wrong."""


def has_kernel(model: EnergyModel) -> bool:
    """Tell whether there is a kernel for a model where it is."""
    return type(model) in INTERFACES and model.device.type == "cpu" and model.dtype in _TYPES


class ByEdges(NamedTuple):
    """What a kernel computes of edge vectors."""

    atom_energies: Float[Tensor, " atoms"]
    """In eV, float64, reference energies included."""
    gradient: Float[Tensor, "edges 3"]
    """Of their sum by the vectors, in eV/Å, float64; what comes of the length that an edge shares
    with its reverse may stand at either of the two."""
    embeddings: tuple[Float[Tensor, "atoms dim"], ...]
    """Per-atom embeddings of each layer."""

    def assembled(
        self, graph: Graph, vectors: Float[Tensor, "edges 3"], stress: bool
    ) -> EnergyForces:
        """Return energies, forces and stress of a graph with these edge vectors in Å."""
        (source, target), atoms = graph.edge_index, len(graph.numbers)
        gradient = self.gradient
        forces = sum_to(gradient, source, atoms).index_add_(0, target, gradient, alpha=-1)
        virial = None
        if stress and graph.cell is not None:
            outer = torch.einsum("ea,eb->eab", gradient, vectors)
            by_strain = sum_to(outer, graph.graph_index.index_select(0, source), graph.n_graphs)
            virial = (by_strain + by_strain.mT) / (2 * volumes(graph.cell))
        energy = sum_to(self.atom_energies, graph.graph_index, graph.n_graphs)
        return EnergyForces(energy, forces, virial, self.atom_energies, self.embeddings)


class Kernel:
    """Energy and forces of a model on the CPU, and its embeddings.

    Memory for the largest structure so far is kept. A structure's numbers are the same bits alone
    and in a batch.

    Args:
        model: Its weights are copied.
        folder: Where the library is kept, that of :func:`lkm_calc.program_files.cache_folder` if
            not given.

    Raises:
        CompileError: There is no working compiler, or the folder cannot be used.
        MemoryError: There is not enough for the weights.
        ValueError: There is no kernel for the model.
    """

    @own_settings
    def __init__(self, model: EnergyModel, folder: Path | None = None) -> None:
        if not has_kernel(model):
            raise ValueError(f"There is no kernel for {model.name} on {model.device}.")
        self.model = model
        self.interface = INTERFACES[type(model)]
        functions, kind = library(self.interface.source, folder), _TYPES[model.dtype]
        make, free, self._run = (functions[f"{verb}_{kind}"] for verb in ("make", "free", "run"))
        make.restype, make.argtypes = ctypes.c_void_p, [ctypes.c_void_p] * 3
        free.argtypes, self._run.argtypes = [ctypes.c_void_p], [ctypes.c_void_p] * 4
        sizes = np.array(self.interface.sizes(model), dtype=np.int64)
        lengths = np.array(self.interface.lengths(model), dtype=np.float64)
        arrays = [array.detach().contiguous() for array in self.interface.arrays(model)]
        handle = make(sizes.ctypes.data, lengths.ctypes.data, _pointers(arrays))
        if not handle:
            raise MemoryError("There is not enough memory for the weights.")
        self._handle = ctypes.c_void_p(handle)
        self._finalizer = weakref.finalize(self, free, self._handle)
        self._embeddings = self.interface.embeddings(model)

    @own_settings
    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return what :func:`lkm_calc.energy_and_forces` returns, for a graph on the CPU.

        Raises:
            MemoryError: There is not enough for the graph.
            ValueError: Its edges are not sorted by target as those of neighbour lists are.
        """
        vectors = graph.edge_vectors()
        return self.run(graph, vectors).assembled(graph, vectors, stress)

    @own_settings
    def run(self, graph: Graph, vectors: Float[Tensor, "edges 3"]) -> ByEdges:
        """Return what follows from the vectors in Å of a graph's edges; errors as of a call."""
        indices = self.interface.indices(self.model, graph)
        atoms, edges = len(graph.numbers), len(vectors)
        values = torch.empty(atoms, dtype=self.model.dtype)
        layers, width = self._embeddings
        embeddings = values.new_empty(layers, atoms, width)
        gradient = vectors.new_empty(edges, 3)
        sizes = [atoms, edges, threads_worth(edges), *map(len, indices)]
        counts = np.array(sizes, dtype=np.int64)
        inputs = (graph.numbers, *graph.edge_index, graph.reverse, vectors, *indices)
        inputs = tuple(tensor.contiguous() for tensor in inputs)
        problem = self._run(
            self._handle,
            counts.ctypes.data,
            _pointers(inputs),
            _pointers((values, gradient, embeddings)),
        )
        if problem == _MEMORY:
            raise MemoryError(f"There is not enough memory for {edges} edges.")
        if problem == _ORDER:
            raise ValueError("The edges are not sorted by target; take those of a neighbour list.")
        scale = self.model.scale
        reference = self.model.reference_energies.index_select(0, graph.numbers)
        atom_energies = values.double() * scale + reference
        return ByEdges(atom_energies, gradient * scale, tuple(embeddings))


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))

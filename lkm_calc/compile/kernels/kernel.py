"""Python interface of the C++ kernels."""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from ...graph import Graph, sum_to
from ...models import ACE, DimeNetPP, MXMNet, PAMNet
from ...models.energy import EnergyModel
from ...potential import EnergyForces, volumes
from ...runtime import own_settings, threads_worth
from . import ace, dimenetpp, mxmnet, pamnet
from .build import library
from .interface import Interface

INTERFACES: Mapping[type[EnergyModel], Interface] = MappingProxyType(
    {
        ACE: ace.INTERFACE,
        DimeNetPP: dimenetpp.INTERFACE,
        MXMNet: mxmnet.INTERFACE,
        PAMNet: pamnet.INTERFACE,
    }
)
"""The architectures that have a kernel."""

_TYPES = {torch.float32: "float", torch.float64: "double"}
_MEMORY, _ORDER = 1, 2
"""Error codes returned by the kernels."""


def has_kernel(model: EnergyModel) -> bool:
    """Return whether there is a kernel for a model on its device and in its dtype."""
    return type(model) in INTERFACES and model.device.type == "cpu" and model.dtype in _TYPES


def trains(model: EnergyModel) -> bool:
    """Return whether a model has a kernel that provides gradients with respect to the weights."""
    return has_kernel(model) and INTERFACES[type(model)].trains


class ByEdges(NamedTuple):
    """Output of a kernel as a function of edge vectors."""

    atom_energies: Float[Tensor, " atoms"]
    """Per-atom energies in eV, float64, including reference energies."""
    gradient: Float[Tensor, "edges 3"]
    """Gradient of their sum with respect to the edge vectors in eV/Å, float64. An edge and its
    reverse have the same length; the gradient with respect to it may be assigned to either."""
    embeddings: tuple[Float[Tensor, "atoms dim"], ...]
    """Per-atom embeddings of each layer."""

    def with_isolated(
        self, model: EnergyModel, graph: Graph, vectors: Float[Tensor, "edges 3"]
    ) -> "ByEdges":
        """Return it with the extra energies of atoms that are not bonded, and their gradient."""
        more = model.isolated_by_edges(graph, vectors)
        if more is None:
            return self
        return self._replace(
            atom_energies=self.atom_energies + more[0], gradient=self.gradient + more[1]
        )

    def assembled(
        self, graph: Graph, vectors: Float[Tensor, "edges 3"], stress: bool
    ) -> EnergyForces:
        """Return energies, forces and stress of a graph with the given edge vectors in Å."""
        (source, target), atoms = graph.edge_index, len(graph.numbers)
        gradient = self.gradient
        forces = sum_to(gradient, source, atoms).index_add_(0, target, gradient, alpha=-1)
        stresses = None
        if stress and graph.cell is not None:
            outer = torch.einsum("ea,eb->eab", gradient, vectors)
            by_strain = sum_to(outer, graph.graph_index.index_select(0, source), graph.n_graphs)
            stresses = (by_strain + by_strain.mT) / (2 * volumes(graph.cell))
        energy = sum_to(self.atom_energies, graph.graph_index, graph.n_graphs)
        return EnergyForces(energy, forces, stresses, self.atom_energies, self.embeddings)


class Kernel:
    """Energy, forces and embeddings of a model on the CPU, computed by a C++ kernel.

    Memory for the largest structure so far is kept. Results for a structure are bitwise identical
    whether it is computed alone or in a batch.

    Args:
        model: The model; its weights are copied.
        folder: Cache folder, by default :func:`lkm_calc.files.cache_folder`.

    Raises:
        CompileError: There is no working compiler, or the folder cannot be used.
        MemoryError: There is not enough memory for the weights.
        ValueError: There is no kernel for the model.
    """

    @own_settings
    def __init__(self, model: EnergyModel, folder: Path | None = None) -> None:
        if not has_kernel(model):
            raise ValueError(
                f"There is no kernel for {model.name} on {model.device} in {model.dtype}. Kernels "
                f"exist on the CPU for {', '.join(cls.name for cls in INTERFACES)}."
            )
        self.model = model
        self.interface = INTERFACES[type(model)]
        functions, kind = library(self.interface.source, folder), _TYPES[model.dtype]
        make, free, self._run = (functions[f"{verb}_{kind}"] for verb in ("make", "free", "run"))
        make.restype, make.argtypes = ctypes.c_void_p, [ctypes.c_void_p] * 3
        free.argtypes, self._run.argtypes = [ctypes.c_void_p], [ctypes.c_void_p] * 4
        self._arrays: list[Tensor] = []
        self.weights: list[Tensor] = []
        """Parameters of the model, in the order of the arrays, if the kernel supports training."""
        if self.interface.trains:
            self._arrays = list(self.interface.arrays(model))
            self.weights = [array for array in self._arrays if isinstance(array, Parameter)]
            self._update, self._gradients = (
                functions[f"{verb}_{kind}"] for verb in ("update", "gradients")
            )
            self._update.argtypes = [ctypes.c_void_p] * 2
            self._gradients.argtypes = [ctypes.c_void_p] * 5
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
        """Return energy, forces and stress as in :func:`lkm_calc.energy_and_forces`.

        Args:
            graph: On the CPU.
            stress: Whether to compute the stress.

        Raises:
            MemoryError: There is not enough memory for the graph.
            ValueError: The edges are not sorted by target, as they are in neighbour lists.
        """
        vectors = graph.edge_vectors()
        found = self.run(graph, vectors).with_isolated(self.model, graph, vectors)
        return found.assembled(graph, vectors, stress)

    def update(self) -> None:
        """Copy the current weights of the model."""
        self._update(self._handle, _pointers(self._arrays))

    @own_settings
    def gradients(
        self,
        graph: Graph,
        vectors: Float[Tensor, "edges 3"],
        by_energies: Float[Tensor, " atoms"],
        by_embeddings: Float[Tensor, "layers atoms dim"] | None,
    ) -> list[Tensor]:
        """Return gradients with respect to the weights, in the order of :attr:`weights`.

        They are the gradients of Σ by_energies · E_i + Σ by_embeddings · e_ij, where E_i are
        per-atom energies in eV without reference energies and e_ij are embeddings. Raises the same
        errors as a call.
        """
        found = [torch.empty_like(weight) for weight in self.weights]
        rest = iter(found)  # constants have no gradients
        outputs = [next(rest) if isinstance(a, Parameter) else None for a in self._arrays]
        values = (by_energies * self.model.scale).to(self.model.dtype).contiguous()
        layers = None if by_embeddings is None else by_embeddings.to(self.model.dtype).contiguous()
        back = (ctypes.c_void_p * 2)(
            values.data_ptr(), None if layers is None else layers.data_ptr()
        )
        counts, inputs = self._inputs(graph, vectors)
        self._check(
            self._gradients(
                self._handle, counts.ctypes.data, _pointers(inputs), back, _pointers(outputs)
            ),
            len(vectors),
        )
        return found

    @own_settings
    def run(self, graph: Graph, vectors: Float[Tensor, "edges 3"]) -> ByEdges:
        """Return energies, gradient and embeddings for given edge vectors in Å.

        All atoms are treated as bonded, see :meth:`ByEdges.with_isolated`. Raises the same errors
        as a call.
        """
        atoms, edges = len(graph.numbers), len(vectors)
        values = torch.empty(atoms, dtype=self.model.dtype)
        layers, width = self._embeddings
        embeddings = values.new_empty(layers, atoms, width)
        gradient = vectors.new_empty(edges, 3)
        counts, inputs = self._inputs(graph, vectors)
        problem = self._run(
            self._handle,
            counts.ctypes.data,
            _pointers(inputs),
            _pointers((values, gradient, embeddings)),
        )
        self._check(problem, edges)
        scale = self.model.scale
        atom_energies = values.double() * scale + self.model.offsets(graph.numbers)
        return ByEdges(atom_energies, gradient * scale, tuple(embeddings))

    def _inputs(
        self, graph: Graph, vectors: Float[Tensor, "edges 3"]
    ) -> tuple[NDArray[np.int64], tuple[Tensor, ...]]:
        """Return the counts and arrays of a graph that the kernel reads."""
        indices = self.interface.indices(self.model, graph)
        sizes = [len(graph.numbers), len(vectors), threads_worth(len(vectors)), *map(len, indices)]
        inputs = (graph.numbers, *graph.edge_index, graph.reverse, vectors, *indices)
        return np.array(sizes, dtype=np.int64), tuple(tensor.contiguous() for tensor in inputs)

    @staticmethod
    def _check(problem: int, edges: int) -> None:
        """Raise the exception that corresponds to an error code of the kernel."""
        if problem == _MEMORY:
            raise MemoryError(f"There is not enough memory for {edges} edges.")
        if problem == _ORDER:
            raise ValueError("The edges are not sorted by target. Build the graph with from_atoms.")


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    return (ctypes.c_void_p * len(tensors))(*pointers)

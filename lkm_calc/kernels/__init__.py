"""Energy and forces written out in C++, built once for a processor by the compiler at hand.

The library is built from the source beside this file within seconds, for all models of an
architecture, all structures and both dtypes, and kept in the user's folder of programs.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..atomic import replacing
from ..energy import EnergyModel
from ..forces import EnergyForces, volumes
from ..graph import Graph
from ..layers import Residual
from ..models.dimenetpp import DimeNetPP, Interaction, Output
from ..program_files import CompileError, check_owner, first_line, open_folder, processor
from ..scatter import sum_to
from ..threads import threads_worth

logger = logging.getLogger("lkm_calc")

SOURCE = Path(__file__).with_name("dimenetpp.cpp")
COMPILERS = ("c++", "g++", "clang++")
"""Tried in this order, after $CXX."""
OPTIONS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=fast")
CHOICES = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
"""Options of which the first that a compiler takes are used."""

_TYPES = {torch.float32: "float", torch.float64: "double"}
_MEMORY, _ORDER = 1, 2
"""What a call returns if something is wrong."""


def has_kernel(model: EnergyModel) -> bool:
    """Tell whether there is a kernel for a model where it is."""
    return type(model) is DimeNetPP and model.device.type == "cpu" and model.dtype in _TYPES


class DimeNetKernel:
    """Energy and forces of a DimeNet++ on the CPU, and its embeddings.

    The gradient is derived by hand, see the source. Memory for the largest structure so far is
    kept. A structure's numbers are the same bits alone and in a batch.

    Args:
        model: Its weights are copied.
        folder: Where the library is kept, that of :func:`lkm_calc.program_files.cache_folder` if
            not given.

    Raises:
        CompileError: There is no working compiler, or the folder cannot be used.
        MemoryError: There is not enough for the weights.
    """

    def __init__(self, model: EnergyModel, folder: Path | None = None) -> None:
        if not (isinstance(model, DimeNetPP) and has_kernel(model)):
            raise ValueError(f"There is no kernel for {model.name} on {model.device}.")
        self.model = model
        library, kind = _library(folder), _TYPES[model.dtype]
        make, free, self._run = (library[f"{verb}_{kind}"] for verb in ("make", "free", "run"))
        make.restype, make.argtypes = ctypes.c_void_p, [_P, ctypes.c_double, _P]
        free.argtypes, self._run.argtypes = [_P], [_P] * 10
        hypers, basis = model.hypers, model.spherical_basis
        head = model.lkm_tap == "head"
        sizes = np.array(
            [
                *(hypers[name] for name in _SIZES),
                model.embedding.atoms.num_embeddings,
                basis.intervals,
                head,
            ],
            dtype=np.int64,
        )
        arrays = [array.detach().contiguous() for array in _arrays(model)]
        pointers = (ctypes.c_void_p * len(arrays))(*(array.data_ptr() for array in arrays))
        handle = make(sizes.ctypes.data, model.cutoff, pointers)
        if not handle:
            raise MemoryError("There is not enough memory for the weights.")
        self._handle = ctypes.c_void_p(handle)
        self._finalizer = weakref.finalize(self, free, self._handle)
        self._layers = hypers["num_blocks"] + 1
        self._width = hypers["output_dim" if head else "hidden"]

    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return what :func:`lkm_calc.energy_and_forces` returns, for a graph on the CPU.

        Raises:
            MemoryError: There is not enough for the graph.
            ValueError: Its edges are not sorted by target as those of neighbour lists are.
        """
        vectors = graph.edge_vectors().contiguous()
        source, target = (ends.contiguous() for ends in graph.edge_index)
        atoms, edges = len(graph.numbers), len(vectors)
        values = torch.empty(atoms, dtype=self.model.dtype)
        layers = values.new_empty(self._layers, atoms, self._width)
        gradient = torch.empty_like(vectors)
        counts = np.array([atoms, edges, threads_worth(edges)], dtype=np.int64)
        tensors = (graph.numbers, source, target, graph.reverse, vectors, values, gradient, layers)
        problem = self._run(
            self._handle, counts.ctypes.data, *(tensor.data_ptr() for tensor in tensors)
        )
        if problem == _MEMORY:
            raise MemoryError(f"There is not enough memory for {edges} edges.")
        if problem == _ORDER:
            raise ValueError("The edges are not sorted by target; take those of a neighbour list.")
        scale = self.model.scale
        gradient = gradient * scale
        reference = self.model.reference_energies.index_select(0, graph.numbers)
        atom_energies = values.double() * scale + reference
        forces = sum_to(gradient, source, atoms).index_add_(0, target, gradient, alpha=-1)
        virial = None
        if stress and graph.cell is not None:
            outer = torch.einsum("ea,eb->eab", gradient, vectors)
            by_strain = sum_to(outer, graph.graph_index.index_select(0, source), graph.n_graphs)
            virial = (by_strain + by_strain.mT) / (2 * volumes(graph.cell))
        energy = sum_to(atom_energies, graph.graph_index, graph.n_graphs)
        return EnergyForces(energy, forces, virial, atom_energies, tuple(layers))


_P = ctypes.c_void_p
_SIZES = (
    "hidden",
    "num_blocks",
    "triplet_dim",
    "output_dim",
    "num_spherical",
    "num_radial",
    "envelope_exponent",
    "num_before_skip",
    "num_after_skip",
    "num_output_dense",
)
"""The first members of Sizes in the source."""


def _arrays(model: DimeNetPP) -> Iterator[Tensor]:
    """Yield the weights in the order in which the source reads them."""
    yield model.radial_basis.frequencies
    yield model.spherical_basis.pieces
    embedding = model.embedding
    to_target, to_source, of_edge = embedding.dense.weight.chunk(3, dim=1)
    yield embedding.atoms.weight @ to_target.T
    yield embedding.atoms.weight @ to_source.T
    yield from _linear(embedding.radial)
    yield of_edge
    yield embedding.dense.bias
    for layer in cast(Iterable[Interaction], model.interactions):
        yield layer.radial_weight()
        yield layer.angular_weight()
        for dense in (layer.from_kj, layer.from_ji, layer.down, layer.up, layer.dense):
            yield from _linear(dense)
        residuals = (*layer.before_skip, *layer.after_skip)
        for residual in cast(Iterable[Residual], residuals):
            yield from _linear(residual.first)
            yield from _linear(residual.second)
    for output in cast(Iterable[Output], model.outputs):
        hidden = cast(Iterable[nn.Linear], output.dense)
        for dense in (output.rbf, output.up, *hidden, output.value):
            yield from _linear(dense)


def _linear(layer: nn.Linear) -> Iterator[Tensor]:
    yield layer.weight
    if layer.bias is not None:
        yield layer.bias


def _library(folder: Path | None) -> ctypes.CDLL:
    """Return the library, built first if the folder holds none for this processor."""
    try:
        place = open_folder(folder)
        compiler = _compiler()
        path = place / f"{SOURCE.stem}-{_fingerprint(compiler)}.so"
        if not path.exists():
            _build(compiler, path)
        check_owner(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(f"the program cannot be used ({first_line(error)}).") from error


def _compiler() -> str:
    """Return the path of a C++ compiler.

    Raises:
        CompileError: There is none.
    """
    for name in (os.environ.get("CXX", ""), *COMPILERS):
        if name and (path := shutil.which(name)):
            return path
    raise CompileError(
        f"there is no C++ compiler, neither $CXX nor {', '.join(COMPILERS)}. Install g++ or clang."
    )


@cache
def _fingerprint(compiler: str) -> str:
    """Return a name that changes with the source, the compiler and the processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    about = repr([OPTIONS, CHOICES, compiler, version, platform.machine(), processor()])
    return hashlib.sha256(SOURCE.read_bytes() + about.encode()).hexdigest()[:24]


def _build(compiler: str, path: Path) -> None:
    """Write the library, whole or not at all.

    Raises:
        CompileError: The compiler fails.
    """
    logger.warning(
        "Compiling DimeNet++ for this processor: seconds, once; kept in %s.", path.parent
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / path.name
        for choice in CHOICES:
            command = [compiler, *OPTIONS, *choice, str(SOURCE), "-o", str(made)]
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            if found.returncode == 0:
                break
        else:
            raise CompileError(f"{' '.join(command)} failed: {found.stderr.strip()[-1000:]}")
        with replacing(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_bytes(made.read_bytes())
    logger.warning("Compiled in %.0f s.", time.perf_counter() - began)

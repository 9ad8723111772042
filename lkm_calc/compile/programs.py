"""Energy and forces as programs compiled for a structure, where there is no kernel for any.

The energy and its gradient are traced together into one graph of tensor operations, for shapes that
hold a little more than the structure at hand. On a CPU the graph is compiled ahead of time to
machine code (torch's AOTInductor, which needs a C++ compiler), and kept in a folder of the user, to
be loaded in milliseconds by the next process. On a GPU the work is recorded as a CUDA graph.

A compiled program is no model file: it is code, made on this machine from the model's weights, and
is loaded only from a folder and files that belong to the user.
"""

import hashlib
import json
import logging
import math
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package
from torch.fx.experimental.proxy_tensor import make_fx

from ..files import (
    COMPILER_ERRORS,
    CompileError,
    check_owner,
    first_line,
    open_folder,
    processor,
    replacing,
)
from ..graph import Graph
from ..models import EnergyModel
from ..potential import EnergyForces, energy_and_forces
from ..runtime import fast_matmul, own_settings, threads_for
from .padding import Capacity, pad, unpad
from .recording import Recorder, record_cuda_graph

logger = logging.getLogger("lkm_calc")

SPARE = 0.06
"""Share of spare rows in a program, so that atoms may move before the next one is needed."""
TOLERANCE = 1e-4
"""Largest difference between compiled and ordinary forces in eV/Å, and between energies per atom in
eV; in proportion more where forces exceed 10 eV/Å. Float32 alone makes a tenth of it."""
WASTE = 1.2
"""Edges that a program made before may have over those of a new one, to be used in its stead."""
MAX_PROGRAMS = 8
"""Programs kept in memory; more shapes are computed in the ordinary way."""

TRIALS = 3
"""Calls of a new program and of the model that are timed, to take the faster one."""

Program = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Choice(NamedTuple):
    """How structures of a kind are computed."""

    capacity: Capacity
    periodic: bool
    stress: bool
    program: Program | None
    """None where the ordinary way is the faster one."""


class CompiledForces:
    """Energy and forces of a model by programs that are made as structures need them.

    A structure that outgrows the last program of its kind gets a larger one. Each program is
    compared with the ordinary computation before it is used, its numbers and its speed. Where there
    is no compiler, or the numbers differ, one warning says so, and all goes on in the ordinary way;
    so it does, for its shapes, where a program is no faster.

    Args:
        model: On its device; its weights must stay as they are.
        folder: Where programs are kept, that of :func:`cache_folder` if not given.
    """

    batches = False
    """Whether several structures at once are computed by a program."""

    def __init__(
        self,
        model: EnergyModel,
        folder: Path | None = None,
        record: Recorder = record_cuda_graph,
    ) -> None:
        self.model = model
        self.folder = folder
        self.record = record
        self.choices: list[Choice] = []
        self.failed = False
        self.used = False
        """Whether the last call was made by a program."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave programs out of copies, which load or record their own."""
        return vars(self) | {"choices": []}

    @own_settings
    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return what :func:`lkm_calc.energy_and_forces` returns, for a graph on the CPU."""
        graph = self.model.prepare(graph)
        choice = None if self.failed else self._choice(graph, stress)
        self.used = choice is not None and choice.program is not None
        if choice is None or choice.program is None:
            return ordinary(self.model, graph, stress)
        return self._run(choice.program, choice.capacity, graph, stress)

    def _run(
        self, program: Program, capacity: Capacity, graph: Graph, stress: bool
    ) -> EnergyForces:
        padded = pad(graph, capacity, self.model.cutoff)
        return _results(program(_values(padded)), graph, stress)

    def _choice(self, graph: Graph, stress: bool) -> Choice | None:
        """Return how to compute a prepared graph, with a program made now if none holds it."""
        kind = (graph.cell is not None, stress)
        for choice in self.choices:
            if choice[1:3] == kind and _fits(choice.capacity, graph):
                return choice
        if len(self.choices) >= MAX_PROGRAMS:
            return None
        capacity = Capacity.of(graph, SPARE)
        for known in self.choices:
            if known[1:3] == kind and known.capacity.atoms == capacity.atoms:
                capacity = capacity.joined(known.capacity)
        # From other positions than those it is checked with: a program that forgot them would pass.
        places = torch.arange(graph.positions.numel(), dtype=torch.float64)
        shifts = 1e-3 * places.view_as(graph.positions).sin()
        example = replace(graph, positions=graph.positions + shifts)
        try:
            capacity, made = self._make(example, capacity, stress)
            check(self._run(made, capacity, graph, stress), ordinary(self.model, graph, stress))
        except CompileError as error:
            warnings.warn(f"Computing without compilation: {error}", stacklevel=2)
            self.failed = True
            return None
        worth = self._is_faster(made, capacity, graph, stress)
        self.choices.append(Choice(capacity, *kind, made if worth else None))
        return self.choices[-1]

    def _is_faster(self, program: Program, capacity: Capacity, graph: Graph, stress: bool) -> bool:
        return is_faster(
            partial(self._run, program, capacity, graph, stress),
            partial(ordinary, self.model, graph, stress),
            len(graph.numbers),
        )

    def _make(self, graph: Graph, capacity: Capacity, stress: bool) -> tuple[Capacity, Program]:
        """Make a program of a capacity, or load one made before that holds the graph.

        Raises:
            CompileError: It cannot be made, loaded or run.
        """
        kind = self.model.device.type
        try:
            if kind == "cuda":
                padded = pad(graph, capacity, self.model.cutoff)
                return capacity, _recorded(self.model, padded, stress, self.record)
            if kind == "cpu":
                return self._kept(graph, capacity, stress)
        except RuntimeError as error:  # of loaders, drivers and memory
            reason = first_line(error)
            raise CompileError(f"the program cannot be used ({reason}).") from error
        raise CompileError(f"there are no programs for the device {self.model.device}.")

    def _kept(self, graph: Graph, capacity: Capacity, stress: bool) -> tuple[Capacity, Program]:
        """Load a program from the folder, where it is put first if there is none that fits."""
        folder = open_folder(self.folder)
        name = _fingerprint(self.model, graph, stress)
        for found in sorted(folder.glob(f"{name}-*.pt2")):
            known = Capacity(*map(int, found.stem.removeprefix(f"{name}-").split("-")))
            if _fits(known, graph) and known.edges <= WASTE * capacity.edges:
                capacity = known
                break
        path = folder / f"{name}-{'-'.join(map(str, capacity))}.pt2"
        if not path.exists():
            _compile(self.model, pad(graph, capacity, self.model.cutoff), stress, path)
        check_owner(path)
        # torch's aoti_load_package is a shell around this that tries the compiler for two seconds.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)

        def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
            with torch.no_grad(), fast_matmul(capacity.edges), threads_for(capacity.edges):
                results: Sequence[Tensor] = loader.run(list(tensors))
            return results

        return capacity, run


def is_faster(
    program: Callable[[], EnergyForces], usual: Callable[[], EnergyForces], atoms: int
) -> bool:
    """Time a program and the ordinary computation in turn, the best of each, and tell of a loss."""
    best = [math.inf, math.inf]
    for _ in range(TRIALS):
        for k, calculate in enumerate((program, usual)):
            began = time.perf_counter()
            calculate().forces.cpu()  # a GPU has finished then
            best[k] = min(best[k], time.perf_counter() - began)
    if best[0] >= best[1]:
        logger.warning(
            "Computing %d atoms without the compiled program, which takes %.1f ms a call; "
            "the ordinary way takes %.1f.",
            atoms,
            1e3 * best[0],
            1e3 * best[1],
        )
    return best[0] < best[1]


@own_settings
def ordinary(model: EnergyModel, graph: Graph, stress: bool) -> EnergyForces:
    """Return the results of a graph on the CPU (eV, eV/Å, eV/Å³) without a program."""
    edges = graph.edge_index.shape[1]
    with fast_matmul(edges), threads_for(edges):
        return energy_and_forces(model, graph.to(model.device), stress=stress)


def check(found: EnergyForces, expected: EnergyForces) -> None:
    """Raise a CompileError if results differ from the ordinary ones by more than allowed."""
    allowed = TOLERANCE * max(1.0, expected.forces.abs().max().item() / 10)
    off = (found.forces - expected.forces).abs().max().item()
    energy_off = (found.energy - expected.energy).abs().max().item()
    if not max(off, energy_off / len(found.forces)) <= allowed:
        raise CompileError(
            f"the compiled forces are off by {off:.2g} eV/Å and the energy by {energy_off:.2g} eV, "
            f"more than the {allowed:.2g} allowed. Please report this with the versions of "
            "torch and of the compiler."
        )


def _fits(capacity: Capacity, graph: Graph) -> bool:
    """Tell whether a program is for as many atoms and holds the graph."""
    return capacity.atoms == len(graph.numbers) + 2 and capacity.holds(graph)


def _values(graph: Graph) -> list[Tensor]:
    return list(graph.tensors().values())


def _results(tensors: Sequence[Tensor], graph: Graph, stress: bool) -> EnergyForces:
    """Return a program's output for the structures of the graph before it was padded."""
    energy, forces, atom_energies, *others = tensors
    virial = others.pop(0) if stress else None
    padded = EnergyForces(energy, forces, virial, atom_energies, tuple(others))
    return unpad(padded, graph.n_graphs, len(graph.numbers))


class _Traced(nn.Module):
    """Energy and forces as a function of the tensors of a padded graph."""

    def __init__(self, model: EnergyModel, padded: Graph, stress: bool) -> None:
        super().__init__()
        self.model, self.padded, self.stress = model, padded, stress
        self.names = list(padded.tensors())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        graph = self.padded.with_tensors(dict(zip(self.names, tensors, strict=True)))
        out = energy_and_forces(self.model, graph, stress=self.stress)
        virial = () if out.stress is None else (out.stress,)
        return (out.energy, out.forces, out.atom_energies, *virial, *out.embeddings)


class _Flat(nn.Module):
    """A traced graph as a module of its own."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = self.traced(*tensors)
        return results


def _compile(model: EnergyModel, padded: Graph, stress: bool, path: Path) -> None:
    """Write the program of a padded graph, whole or not at all.

    Raises:
        CompileError: There is no working compiler, or the folder cannot be written.
    """
    logger.warning(
        "Compiling %s for %d atoms and up to %d edges: about a minute, once; kept in %s.",
        model.name,
        len(padded.numbers) - 2,
        padded.edge_index.shape[1],
        path.parent,
    )
    began = time.perf_counter()
    tensors = _values(padded)
    options = {"freezing": True, "memory_planning": True, "cpp.dynamic_threads": True}
    try:
        with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
            traced = make_fx(_Traced(model, padded, stress))(*tensors)
            program = torch.export.export(_Flat(traced), tuple(tensors))
            made = aoti_compile_and_package(
                program, package_path=str(Path(scratch) / "program.pt2"), inductor_configs=options
            )
            with replacing(path) as temporary:
                temporary.touch(mode=0o600)
                temporary.write_bytes(Path(made).read_bytes())
    except COMPILER_ERRORS as error:
        reason = first_line(error)
        raise CompileError(
            f"the program could not be compiled ({reason}). A C++ compiler such as g++ is needed."
        ) from error
    logger.warning("Compiled in %.0f s.", time.perf_counter() - began)


@dataclass(frozen=True)
class _Recorded:
    """A recording with the memory that it reads and writes."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    replay: Callable[[], None]
    weights: Sequence[Tensor]
    """Those of the model, which must outlive its move to another place or type."""

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        for own, new in zip(self.inputs, tensors, strict=True):
            own.copy_(new, non_blocking=True)
        self.replay()
        return [output.clone() for output in self.outputs]  # the next replay writes there


def _recorded(model: EnergyModel, padded: Graph, stress: bool, record: Recorder) -> _Recorded:
    """Record energy and forces of a padded graph on the model's device."""
    fixed = padded.to(model.device)
    inputs = _values(fixed)
    traced = _Traced(model, fixed, stress)
    outputs, replay = record(lambda: traced(*inputs), model.device)
    weights = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    return _Recorded(inputs, outputs, replay, weights)


def _fingerprint(model: EnergyModel, graph: Graph, stress: bool) -> str:
    """Return a name that changes with the weights, the kind of graph, the code and the machine."""
    about = {
        "model": [model.name, model.hypers, str(model.dtype)],
        "graph": [sorted(graph.tensors()), len(graph.numbers), graph.n_graphs, stress],
        "torch": [torch.__version__, torch.backends.cpu.get_cpu_capability()],
        "machine": [platform.machine(), platform.system(), processor()],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    package = Path(__file__).parents[1]  # all that a model is computed by
    for source in (*sorted(package.rglob("*.py")), *_other_sources(model, package)):
        digest.update(source.read_bytes())
    return f"{model.name.replace('+', 'p')}-{digest.hexdigest()[:24]}"


def _other_sources(model: EnergyModel, package: Path) -> list[Path]:
    """Return the files outside a package in which the classes of a model's parts are written."""
    modules = {type(part).__module__ for part in model.modules()}
    named = [getattr(sys.modules.get(name), "__file__", None) for name in sorted(modules)]
    files = [Path(name) for name in named if name is not None]
    return [file for file in files if file.suffix == ".py" and not file.is_relative_to(package)]

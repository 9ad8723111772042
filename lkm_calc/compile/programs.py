"""Energy and forces from programs of fixed shapes, for models and devices without a kernel.

A program is compiled for one capacity, slightly larger than the current structure needs. On a CPU
it is compiled ahead of time (:mod:`lkm_calc.compile.aot`); on a GPU it is captured as a CUDA graph
(:mod:`lkm_calc.compile.cuda_graphs`).
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import CompileError, first_line
from ..graph import Graph
from ..models import EnergyModel
from ..potential import EnergyForces
from ..runtime import own_settings
from .aot import load_or_compile
from .cuda_graphs import Capture, capture_cuda_graph, captured_forces
from .padding import Capacity, pad
from .protocol import UncompiledForces, check, is_faster
from .traced import Program, inputs_of, results_of

SPARE = 0.06
"""Fraction of spare rows in a program, so that moving atoms do not soon require a larger one."""
MAX_PROGRAMS = 8
"""Maximum number of programs in memory; further shapes are computed without a program."""


class Choice(NamedTuple):
    """How structures of a certain kind are computed."""

    capacity: Capacity
    periodic: bool
    stress: bool
    program: Program | None
    """None if it is not faster than the uncompiled model."""


class ProgramForces:
    """Energy and forces of a model from programs that are compiled on demand.

    A larger program is compiled when a structure no longer fits into the existing ones. The results
    and the speed of each program are compared with the uncompiled computation before it is used.
    If there is no compiler, or the results differ, a single warning is issued and no programs are
    used from then on. Batches, and shapes for which a program is not faster, are computed without
    a program and without a warning.

    Args:
        model: On its device; its weights must not change afterwards.
        folder: Cache folder, by default :func:`lkm_calc.files.cache_folder`.
        capture: Function that captures work on a GPU.
    """

    def __init__(
        self,
        model: EnergyModel,
        folder: Path | None = None,
        capture: Capture = capture_cuda_graph,
    ) -> None:
        self.model = model
        self.folder = folder
        self.capture = capture
        self.uncompiled = UncompiledForces(model)
        self.choices: list[Choice] = []
        self.failed = False
        self.used = False

    @property
    def compiles(self) -> bool:
        """Whether programs can be compiled; True before the first call."""
        return not self.failed

    def __getstate__(self) -> dict[str, Any]:
        """Exclude programs from copies, which load or capture them again."""
        return vars(self) | {"choices": []}

    @own_settings
    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return energy, forces and stress as in :func:`lkm_calc.energy_and_forces`.

        Args:
            graph: On the CPU.
            stress: Whether to compute the stress.
        """
        if graph.n_graphs > 1:
            self.used = False
            return self.uncompiled(graph, stress)
        graph = self.model.prepare(graph)
        choice = None if self.failed else self._choice(graph, stress)
        self.used = choice is not None and choice.program is not None
        if choice is None or choice.program is None:
            return self.uncompiled(graph, stress)
        return self._run(choice.program, choice.capacity, graph, stress)

    def _run(
        self, program: Program, capacity: Capacity, graph: Graph, stress: bool
    ) -> EnergyForces:
        padded = pad(graph, capacity, self.model.cutoff)
        return results_of(program(inputs_of(padded)), graph, stress)

    def _choice(self, graph: Graph, stress: bool) -> Choice | None:
        """Return how to compute a prepared graph, with a new program if no existing one fits."""
        kind = (graph.cell is not None, stress)
        for choice in self.choices:
            if choice[1:3] == kind and choice.capacity.fits(graph):
                return choice
        if len(self.choices) >= MAX_PROGRAMS:
            return None
        capacity = Capacity.of(graph, SPARE)
        for known in self.choices:
            if known[1:3] == kind and known.capacity.atoms == capacity.atoms:
                capacity = capacity.joined(known.capacity)
        # Compiled at other positions than those of the check, which thus detects a program that
        # treats the positions as constants.
        places = torch.arange(graph.positions.numel(), dtype=torch.float64)
        shifts = 1e-3 * places.view_as(graph.positions).sin()
        example = replace(graph, positions=graph.positions + shifts)
        try:
            capacity, made = self._make(example, capacity, stress)
            check(self._run(made, capacity, graph, stress), self.uncompiled(graph, stress))
        except CompileError as error:
            warnings.warn(f"Computing without compilation: {error}", stacklevel=2)
            self.failed = True
            return None
        worth = self._is_faster(made, capacity, graph, stress)
        self.choices.append(Choice(capacity, *kind, made if worth else None))
        return self.choices[-1]

    def _is_faster(self, program: Program, capacity: Capacity, graph: Graph, stress: bool) -> bool:
        def compiled(graph: Graph, stress: bool) -> EnergyForces:
            return self._run(program, capacity, graph, stress)

        return is_faster(compiled, self.uncompiled, graph, stress)

    def _make(self, graph: Graph, capacity: Capacity, stress: bool) -> tuple[Capacity, Program]:
        """Compile or capture a program, or load a cached one into which the graph fits.

        Raises:
            CompileError: It cannot be compiled, loaded or run.
        """
        kind = self.model.device.type
        try:
            if kind == "cuda":
                padded = pad(graph, capacity, self.model.cutoff)
                return capacity, captured_forces(self.model, padded, stress, self.capture)
            if kind == "cpu":
                return load_or_compile(self.model, graph, capacity, stress, self.folder)
        except RuntimeError as error:  # from the loader, the driver, or out of memory
            reason = first_line(error)
            raise CompileError(f"the program cannot be used ({reason}).") from error
        raise CompileError(
            f"programs are not supported on {self.model.device}, only on CPU and CUDA devices."
        )

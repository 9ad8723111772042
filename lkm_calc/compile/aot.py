"""Programs compiled ahead of time for a CPU with torch's AOTInductor and a C++ compiler.

The energy and its gradient are traced together into one graph of tensor operations, compiled to
machine code and cached in a folder of the user, from which other processes load it in milliseconds.

A compiled program is machine code that contains the weights, not a model file. It is only loaded
from folders and files that belong to the user.
"""

import hashlib
import json
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package
from torch.fx.experimental.proxy_tensor import make_fx

from ..files import (
    COMPILER_ERRORS,
    check_owner,
    not_compiled,
    open_folder,
    processor,
    write_program,
)
from ..graph import Graph
from ..models import EnergyModel
from ..runtime import fast_matmul, threads_for
from .padding import Capacity, pad
from .traced import Program, Traced, inputs_of

logger = logging.getLogger("lkm_calc")

WASTE = 1.2
"""Maximum number of edges of a cached program, relative to a new one, for it to be reused."""


def load_or_compile(
    model: EnergyModel, graph: Graph, capacity: Capacity, stress: bool, folder: Path | None
) -> tuple[Capacity, Program]:
    """Load a program from the cache, compiling it first if there is no suitable one.

    Args:
        model: On the CPU.
        graph: A prepared graph.
        capacity: Capacity of a new program.
        stress: Whether the stress is computed as well.
        folder: Cache folder, by default :func:`lkm_calc.files.cache_folder`.

    Returns:
        The capacity of the program, sufficient for the graph, and the program.

    Raises:
        CompileError: There is no working compiler, or the folder cannot be used.
        RuntimeError: The program cannot be loaded.
    """
    folder = open_folder(folder)
    name = _fingerprint(model, graph, stress)
    for found in sorted(folder.glob(f"{name}-*.pt2")):
        known = Capacity(*map(int, found.stem.removeprefix(f"{name}-").split("-")))
        if known.fits(graph) and known.edges <= WASTE * capacity.edges:
            capacity = known
            break
    path = folder / f"{name}-{'-'.join(map(str, capacity))}.pt2"
    if not path.exists():
        _compile(model, pad(graph, capacity, model.cutoff), stress, path)
    check_owner(path)
    # torch's aoti_load_package wraps this, but first spends two seconds on testing the compiler.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad(), fast_matmul(capacity.edges), threads_for(capacity.edges):
            results: Sequence[Tensor] = loader.run(list(tensors))
        return results

    return capacity, run


class _Flat(nn.Module):
    """A traced graph as a module, for torch.export."""

    def __init__(self, traced: torch.fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = self.traced(*tensors)
        return results


def _compile(model: EnergyModel, padded: Graph, stress: bool, path: Path) -> None:
    """Compile the program of a padded graph and write it atomically.

    Raises:
        CompileError: There is no working compiler, or the folder cannot be written.
    """
    logger.warning(
        "Compiling %s for %d atoms and up to %d edges. This takes about a minute; the result is "
        "cached in %s.",
        model.name,
        len(padded.numbers) - 2,
        padded.edge_index.shape[1],
        path.parent,
    )
    began = time.perf_counter()
    tensors = inputs_of(padded)
    options = {"freezing": True, "memory_planning": True, "cpp.dynamic_threads": True}
    try:
        with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
            traced = make_fx(Traced(model, padded, stress))(*tensors)
            program = torch.export.export(_Flat(traced), tuple(tensors))
            made = aoti_compile_and_package(
                program, package_path=str(Path(scratch) / "program.pt2"), inductor_configs=options
            )
            write_program(path, Path(made).read_bytes())
    except COMPILER_ERRORS as error:
        raise not_compiled("program", error) from error
    logger.warning("Compiled in %.0f s.", time.perf_counter() - began)


def _fingerprint(model: EnergyModel, graph: Graph, stress: bool) -> str:
    """Return a name with a hash of the weights, the kind of graph, the code and the machine."""
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
    package = Path(__file__).parents[1]  # all code that evaluates a model
    for source in (*sorted(package.rglob("*.py")), *_other_sources(model, package)):
        digest.update(source.read_bytes())
    return f"{model.name.replace('+', 'p')}-{digest.hexdigest()[:24]}"


def _other_sources(model: EnergyModel, package: Path) -> list[Path]:
    """Return the source files outside a package that define submodules of a model."""
    modules = {type(part).__module__ for part in model.modules()}
    named = [getattr(sys.modules.get(name), "__file__", None) for name in sorted(modules)]
    files = [Path(name) for name in named if name is not None]
    return [file for file in files if file.suffix == ".py" and not file.is_relative_to(package)]

"""The original implementations of PAMNet and MXMNet, from clones of their repositories.

    git clone https://github.com/XieResearchGroup/Physics-aware-Multiplex-GNN
    git clone https://github.com/zetayue/MXMNet
    pip install torch-scatter torch-sparse torch-cluster sympy scikit-learn
    python -m benchmarks.md_step aspirin.xyz --official .

Their code predicts energies for QM9; here these are differentiated with respect to the positions,
with the same cut-off of the local graph as in lkm-calc.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch_geometric.data import Data

from lkm_calc import Graph

LOCAL, CUTOFF = 2.0, 5.0
"""Radii of the local and of the wide graph in Å."""
ELEMENTS = {1: 0, 6: 1, 7: 2, 8: 3, 9: 4}
"""Rows of their embedding by atomic number."""


def pamnet(folder: Path) -> nn.Module:
    """Return PAMNet, 6 layers of 128 features, from a clone of its repository."""
    with _package(folder / "Physics-aware-Multiplex-GNN", "models") as module:
        return module.PAMNet(module.Config("QM9", 128, 6, LOCAL, CUTOFF))


def mxmnet(folder: Path) -> nn.Module:
    """Return MXMNet, 6 layers of 128 features, from a clone of its repository."""
    # Their layers write into parameters, which torch refuses where gradients are recorded.
    with _package(folder / "MXMNet", "model") as module, torch.no_grad():
        return module.MXMNet(module.Config(128, 6, CUTOFF))


OFFICIAL: dict[str, Callable[[Path], nn.Module]] = {
    "PAMNet, published code": pamnet,
    "MXMNet, published code": mxmnet,
}


@contextmanager
def _package(folder: Path, name: str) -> Iterator[ModuleType]:
    """Import a module of a repository whose top-level names, such as utils, others have too."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no {folder}: clone the repository into {folder.parent}.")
    before = dict(sys.modules)
    names = {path.stem for path in folder.iterdir()}
    for known in list(sys.modules):
        if known.split(".")[0] in names:
            del sys.modules[known]
    sys.path.insert(0, str(folder))
    if not hasattr(np, "math"):
        np.math = math  # type: ignore[attr-defined]  # theirs asks numpy for it, which dropped it
    try:
        module = importlib.import_module(name)
        # torch-geometric 2.8 takes pyg-lib instead, of which PyPI has no build for torch 2.13.
        module.radius = importlib.import_module("torch_cluster").radius
        yield module
    finally:
        sys.path.remove(str(folder))
        for known in set(sys.modules) - set(before):
            if known.split(".")[0] in names:
                del sys.modules[known]
        sys.modules.update(before)


class OfficialCalculator(Calculator):
    """Energy and forces of molecules by a published network, which finds its wide graph itself.

    Args:
        model: One of this module.
        dtype: Of the weights, drawn when the model is made.
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model.to(dtype).eval().requires_grad_(False)
        self.dtype = dtype

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        strange = set(self.atoms.symbols) - {chemical_symbols[z] for z in ELEMENTS}
        if strange:
            raise RuntimeError(
                f"The published networks know the elements of QM9 alone, not {', '.join(strange)}. "
                "Take a structure of H, C, N, O and F, or leave --official out."
            )
        kinds = torch.tensor([ELEMENTS[int(z)] for z in self.atoms.numbers])
        positions = torch.tensor(self.atoms.positions, dtype=self.dtype, requires_grad=True)
        batch = torch.zeros_like(kinds)
        local = Graph.from_atoms(self.atoms, LOCAL).edge_index
        energy: Tensor = self.model(Data(x=kinds, edge_index=local, pos=positions, batch=batch))
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
        self.results = {"energy": energy.item(), "forces": -gradient.numpy()}

"""Energy and forces as a function of the tensors of a padded graph, for fixed shapes."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..graph import Graph
from ..models import EnergyModel
from ..potential import EnergyForces, energy_and_forces
from .padding import unpad

Program = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Compiled :class:`Traced` for one capacity."""


class Traced(nn.Module):
    """Energy and forces as a function of the tensors of a padded graph of fixed shapes.

    Args:
        model: On its device.
        padded: A graph with these shapes, on the same device.
        stress: Whether the stress is computed as well.
    """

    def __init__(self, model: EnergyModel, padded: Graph, stress: bool) -> None:
        super().__init__()
        self.model, self.padded, self.stress = model, padded, stress
        self.names = list(padded.tensors())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return energy, forces, per-atom energies, stress if requested, and embeddings."""
        graph = self.padded.with_tensors(dict(zip(self.names, tensors, strict=True)))
        out = energy_and_forces(self.model, graph, stress=self.stress)
        stresses = () if out.stress is None else (out.stress,)
        return (out.energy, out.forces, out.atom_energies, *stresses, *out.embeddings)


def inputs_of(graph: Graph) -> list[Tensor]:
    """Return the tensors of a graph in the order of the inputs of a program."""
    return list(graph.tensors().values())


def results_of(tensors: Sequence[Tensor], graph: Graph, stress: bool) -> EnergyForces:
    """Return the output of a program for the graph without padding."""
    energy, forces, atom_energies, *others = tensors
    stresses = others.pop(0) if stress else None
    padded = EnergyForces(energy, forces, stresses, atom_energies, tuple(others))
    return unpad(padded, graph.n_graphs, len(graph.numbers))

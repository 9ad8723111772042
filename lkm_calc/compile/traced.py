"""Energy and forces as a function of the tensors of a padded graph, for fixed shapes."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..graph import Graph
from ..models import EnergyModel
from ..potential import EnergyForces, energy_and_forces
from .padding import unpad

Program = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""What :class:`Traced` computes, compiled for one capacity."""


class Traced(nn.Module):
    """Energy and forces as a function of the tensors of a padded graph, whose shapes stay.

    Args:
        model: On its device.
        padded: A graph of these shapes, on the same device.
        stress: Whether the stress is computed as well.
    """

    def __init__(self, model: EnergyModel, padded: Graph, stress: bool) -> None:
        super().__init__()
        self.model, self.padded, self.stress = model, padded, stress
        self.names = list(padded.tensors())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return energy, forces, atomic energies, the stress if asked for, and the embeddings."""
        graph = self.padded.with_tensors(dict(zip(self.names, tensors, strict=True)))
        out = energy_and_forces(self.model, graph, stress=self.stress)
        stresses = () if out.stress is None else (out.stress,)
        return (out.energy, out.forces, out.atom_energies, *stresses, *out.embeddings)


def inputs_of(graph: Graph) -> list[Tensor]:
    """Return the tensors of a graph in the order in which programs take them."""
    return list(graph.tensors().values())


def results_of(tensors: Sequence[Tensor], graph: Graph, stress: bool) -> EnergyForces:
    """Return a program's output for the structures of the graph before it was padded."""
    energy, forces, atom_energies, *others = tensors
    stresses = others.pop(0) if stress else None
    padded = EnergyForces(energy, forces, stresses, atom_energies, tuple(others))
    return unpad(padded, graph.n_graphs, len(graph.numbers))

"""Training on structures with atoms that are, in part, isolated ones."""

from dataclasses import replace

import torch
from torch import Tensor

from lkm_calc import EnergyModel, Graph, Prediction
from lkm_calc.models import AtomOutput, isolation

from ..data import GraphFrames

FRAMES_AT_ONCE = 256


class WithIsolatedAtoms(EnergyModel):
    """A model whose energies of isolated atoms hold at every step of a training.

    What the network writes for them follows from the weights, so isolated atoms, one of each
    element, are computed along with every graph. The model by itself has what was measured last.

    Args:
        model: The model, whose weights and energies are those of this one at all times.
    """

    def __init__(self, model: EnergyModel) -> None:
        super().__init__(model.cutoff, model.hypers)
        self.name, self.model = model.name, model
        self.numbers = torch.tensor(model.isolated_elements, device=model.device)

    def forward(self, graph: Graph) -> Prediction:
        """Return the model's prediction, with the energies of isolated atoms by its weights."""
        model, atoms = self.model, len(graph.numbers)
        graph = model.prepare(graph)
        output = self.atom_output(graph)
        values = output.values[atoms:].double() * model.scale
        binding = model.binding_energies.index_select(0, self.numbers)
        shifts = model.isolated_shifts.index_copy(0, self.numbers, -binding - values)
        output = AtomOutput(
            output.values[:atoms],
            tuple(layer[:atoms] for layer in output.embeddings),
            tuple(layer[:atoms] for layer in output.layer_values),
        )
        return model.summed(graph, output, shifts)

    def atom_output(self, graph: Graph) -> AtomOutput:
        """Return the model's output of a prepared graph and, after it, of isolated atoms."""
        lone = self.numbers
        joined = replace(
            graph,
            numbers=torch.cat([graph.numbers, lone]),
            positions=torch.cat([graph.positions, graph.positions.new_zeros(len(lone), 3)]),
            graph_index=torch.cat([graph.graph_index, torch.full_like(lone, graph.n_graphs)]),
            n_graphs=graph.n_graphs + 1,
        )
        return self.model.atom_output(joined)


def as_trained(model: EnergyModel, data: GraphFrames) -> EnergyModel:
    """Return what to differentiate in a training: the model if all atoms of the set are bonded."""
    return WithIsolatedAtoms(model) if _some_isolated(model, data) else model


def _some_isolated(model: EnergyModel, data: GraphFrames) -> bool:
    """Tell whether an atom of an element whose isolated atoms have an energy is not bonded."""
    if not model.isolated_elements:
        return False
    concerned = torch.zeros_like(model.known_elements)
    concerned[list(model.isolated_elements)] = True
    found: list[Tensor] = []
    for indices in data.in_order(FRAMES_AT_ONCE):
        graph = data.batch(indices).graph
        lengths = graph.edge_vectors().norm(dim=1)
        weight = isolation(lengths, graph.edge_index[1], len(graph.numbers), model.cutoff)
        found.append((weight[concerned.index_select(0, graph.numbers)] > 0).any())
    return bool(torch.stack(found).any())

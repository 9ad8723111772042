"""Training on structures that contain isolated atoms."""

from dataclasses import replace

import torch
from torch import Tensor

from lkm_calc import EnergyModel, Graph, Prediction
from lkm_calc.models import AtomOutput, isolation

from ..data import GraphFrames

FRAMES_AT_ONCE = 256


class WithIsolatedAtoms(EnergyModel):
    """A model whose energies of isolated atoms are exact at every training step.

    The output of the network for isolated atoms depends on the weights, so one atom of each element
    is evaluated together with every graph. The wrapped model only uses the values from the last
    ``measure_isolated_atoms``.

    Args:
        model: The wrapped model, which shares its weights and energies.
    """

    def __init__(self, model: EnergyModel) -> None:
        super().__init__(model.cutoff, model.hypers)
        self.name, self.model = model.name, model
        self.numbers = torch.tensor(model.isolated_elements, device=model.device)

    def forward(self, graph: Graph) -> Prediction:
        """Return the prediction, with isolated atoms evaluated for the current weights."""
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
        """Return the output for a prepared graph, followed by that for isolated atoms."""
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
    """Return the model to differentiate: wrapped if some atoms of the training set are isolated."""
    return WithIsolatedAtoms(model) if _some_isolated(model, data) else model


def _some_isolated(model: EnergyModel, data: GraphFrames) -> bool:
    """Return whether an atom is not bonded whose element has a given isolated-atom energy."""
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

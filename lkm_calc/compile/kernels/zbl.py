"""Models with a ZBL core by the kernel of the model within."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...graph import Graph
from ...models.energy import EnergyModel
from ...potential import EnergyForces, HeldGraph, Pairs, ZBLModel, hold
from ...runtime import own_settings
from .kernel import ByEdges, Kernel


class ZBLKernel:
    """The kernel of a model with a ZBL core: that of the model within, at the vectors it sees.

    Where no pair is closer than its outer radius, the numbers are that kernel's, to the bit.

    Args:
        model: The weights of the model within are copied.
        folder: As :class:`Kernel` takes it, which also raises the errors.
    """

    def __init__(self, model: ZBLModel, folder: Path | None = None) -> None:
        self.model = model
        self.kernel = Kernel(model.model, folder)

    @own_settings
    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return what :func:`lkm_calc.energy_and_forces` returns; errors are those of Kernel."""
        vectors = graph.edge_vectors()
        pairs = self.model.pairs(graph, vectors.dtype)
        near = (vectors.norm(dim=1) < pairs.outer).nonzero().flatten()
        if len(near):
            found = self._held(graph, vectors, near, pairs.select(near))
        else:
            found = self.kernel.run(graph, vectors)
        found = found.with_isolated(self.model, graph, vectors)
        return found.assembled(graph, vectors, stress)

    def _held(
        self,
        graph: Graph,
        vectors: Float[Tensor, "edges 3"],
        near: Int[Tensor, " near"],
        pairs: Pairs,
    ) -> ByEdges:
        """Run the kernel with near edges held, and lead its gradient back to their vectors.

        What the kernel gives to an edge instead of its reverse arrives as it should: the derivative
        of what is seen of an edge is that of its reverse.
        """
        with torch.enable_grad():
            close = vectors.index_select(0, near).requires_grad_()
            seen, repulsion = hold(close, pairs)
        everything = vectors.index_copy(0, near, seen.detach())
        apart = HeldGraph(**vars(graph), vectors=everything)
        energies, gradient, embeddings = self.kernel.run(apart, everything)
        (by_close,) = torch.autograd.grad(
            [seen, repulsion],
            close,
            [gradient.index_select(0, near), torch.ones_like(repulsion)],
        )
        targets = graph.edge_index[1].index_select(0, near)
        return ByEdges(
            energies.index_add(0, targets, repulsion.detach()),
            gradient.index_copy(0, near, by_close),
            embeddings,
        )


def kernel_of(model: EnergyModel, folder: Path | None = None) -> Kernel | ZBLKernel:
    """Return the kernel of a model, with a core or without; errors are those of Kernel."""
    return ZBLKernel(model, folder) if isinstance(model, ZBLModel) else Kernel(model, folder)

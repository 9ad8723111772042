"""Models with ZBL repulsion, computed by the kernel of the wrapped model."""

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
    """Energy and forces of a model with ZBL repulsion, computed by the kernel of the wrapped model.

    The kernel is called with clamped edge vectors. If no pair is closer than its outer radius,
    results are bitwise identical to those of :class:`Kernel`.

    Args:
        model: The model; its weights are copied.
        folder: As for :class:`Kernel`, which raises the same errors.
    """

    def __init__(self, model: ZBLModel, folder: Path | None = None) -> None:
        self.model = model
        self.kernel = Kernel(model.model, folder)

    @own_settings
    def __call__(self, graph: Graph, stress: bool = False) -> EnergyForces:
        """Return energy, forces and stress; arguments and errors as for :class:`Kernel`."""
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
        """Run the kernel with close edges clamped, and propagate its gradient to their vectors.

        The kernel may assign gradients of an edge to its reverse. This is correct here, because the
        derivative of the clamped vector is the same for both.
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
    """Return the kernel of a model with or without ZBL repulsion; errors as for :class:`Kernel`."""
    return ZBLKernel(model, folder) if isinstance(model, ZBLModel) else Kernel(model, folder)

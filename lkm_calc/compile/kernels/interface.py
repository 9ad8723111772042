"""Conversion of models and graphs to the inputs of a kernel."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...graph import Graph
from ...models.multiplex import MultiplexModel
from ...nn import EdgeLinear, MultiplexBasis


class Interface(NamedTuple):
    """How models of one architecture are passed to its kernel."""

    source: str
    """Name of the C++ source without the suffix."""
    sizes: Callable[[Any], Sequence[int]]
    """Integers of a model in the order of the C++ struct Sizes."""
    lengths: Callable[[Any], Sequence[float]]
    """Lengths of a model in Å, and other real parameters."""
    arrays: Callable[[Any], Iterator[Tensor]]
    """Parameters and constants of a model in the order in which the kernel reads them; not copies
    if the kernel trains."""
    embeddings: Callable[[Any], tuple[int, int]]
    """Number of embeddings of a model, and their width."""
    indices: Callable[[Any, Graph], tuple[Tensor, ...]]
    """For a model and a graph, int64 tensors that the kernel reads in addition to the edges."""
    trains: bool = False
    """Whether the kernel also provides gradients with respect to the weights."""
    displacement: float | None = 1e-3
    """Norm in Å of the displacement for finite differences of these gradients in float32; None if
    new models are too rough for it."""


def linear(layer: nn.Linear) -> Iterator[Tensor]:
    """Yield the weight of a layer, and its bias if it has one."""
    yield layer.weight
    if layer.bias is not None:
        yield layer.bias


def linears(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of all linear layers of a module, in the order of its submodules."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            yield from linear(layer)


MULTIPLEX_HYPERS = (
    "hidden",
    "num_layers",
    "num_radial",
    "num_spherical",
    "num_spherical_radial",
    "envelope_exponent",
)
"""First members of Sizes of MXMNet and PAMNet."""


def cutoffs(model: MultiplexModel) -> list[float]:
    """Return the cut-offs of the global and the local graph in Å."""
    return [model.cutoff, model.basis.local_cutoff]


def of_distances(basis: MultiplexBasis, embedding: nn.Embedding) -> Iterator[Tensor]:
    """Yield the first arrays of MXMNet and PAMNet: radial bases, elements, features of edges."""
    yield basis.radial_wide.frequencies
    yield basis.radial_local.frequencies
    yield basis.spherical.pieces
    yield embedding.weight
    yield basis.to_wide.weight
    yield basis.to_local.weight


def of_messages(message: EdgeLinear, gates: nn.Linear) -> Iterator[Tensor]:
    """Yield the weights of messages: of [target ‖ source ‖ edge], their bias, and the gates."""
    yield from linear(message)
    yield gates.weight

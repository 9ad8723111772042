"""What a kernel must be told of a model and of a graph."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...graph import Graph
from ...models.multiplex import MultiplexModel
from ...nn import EdgeLinear, MultiplexBasis


class Interface(NamedTuple):
    """How a model of one architecture is handed to the library of its source."""

    source: str
    """Name of the source, without its ending."""
    sizes: Callable[[Any], Sequence[int]]
    """Of a model, whole numbers in the order of the source's struct Sizes."""
    lengths: Callable[[Any], Sequence[float]]
    """Of a model, lengths in Å."""
    arrays: Callable[[Any], Iterator[Tensor]]
    """Of a model, its weights in the order in which the source reads them."""
    embeddings: Callable[[Any], tuple[int, int]]
    """Of a model, the number of its layers' embeddings and their width."""
    indices: Callable[[Any, Graph], tuple[Tensor, ...]]
    """Of a model and a graph, int64 tensors that the source reads beside the edges."""
    trains: bool = False
    """Whether the source also gives gradients by the weights, and takes new ones."""


def linear(layer: nn.Linear) -> Iterator[Tensor]:
    """Yield a layer's weight, and its bias if it has one."""
    yield layer.weight
    if layer.bias is not None:
        yield layer.bias


def linears(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of all linear layers of a module, in its order."""
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
"""With these the sizes of MXMNet and PAMNet begin."""


def cutoffs(model: MultiplexModel) -> list[float]:
    """Return the cut-offs of the global and the local graph in Å."""
    return [model.cutoff, model.basis.local_cutoff]


def of_distances(basis: MultiplexBasis, embedding: nn.Embedding) -> Iterator[Tensor]:
    """Yield what MXMNet and PAMNet begin with: radial bases, elements, features of distances."""
    yield basis.radial_wide.frequencies
    yield basis.radial_local.frequencies
    yield basis.spherical.pieces
    yield embedding.weight
    yield basis.to_wide.weight
    yield basis.to_local.weight


def of_messages(message: EdgeLinear, gates: nn.Linear) -> Iterator[Tensor]:
    """Yield the weights of messages side by side: [target ‖ source], [edge ‖ gates], its bias."""
    to_target, to_source, of_edge = message.weight.chunk(3, dim=1)
    yield torch.cat([to_target, to_source])
    yield torch.cat([of_edge, gates.weight])
    yield torch.cat([message.bias, message.bias.new_zeros(gates.out_features)])

"""Inputs of the ACE kernel, see ace.cpp."""

from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor

from ...graph import Graph
from ...models import ACE
from ...models.ace import Interaction, Readout
from .interface import Interface, linears

HYPERS = (
    "num_channels",
    "num_interactions",
    "max_ell",
    "correlation",
    "num_radial",
    "radial_hidden",
    "envelope_exponent",
)
FLAGS = ("node_dependent", "runtime_geometry", "gated", "normalised", "linear_readouts")


def sizes(model: ACE) -> list[int]:
    """Return the members of the C++ struct Sizes."""
    return [
        *(int(model.hypers[name]) for name in HYPERS),
        model.embedding.num_embeddings,
        *(int(model.hypers[name]) for name in FLAGS),
        int(model.lkm_tap == "norms"),
    ]


def lengths(model: ACE) -> list[float]:
    """Return the cut-off in Å and the factor by which sums over neighbours are multiplied."""
    return [model.cutoff, model.norm]


def arrays(model: ACE) -> Iterator[Tensor]:
    """Yield the weights in the order in which the kernel reads them."""
    yield model.embedding.weight
    yield model.radial_basis.frequencies
    yield model.target_element.weight
    yield model.source_element.weight
    layers = zip(model.interactions, model.readouts, strict=True)
    for interaction, readout in cast(Iterable[tuple[Interaction, Readout]], layers):
        yield from linears(interaction)
        yield from linears(readout)


def embeddings(model: ACE) -> tuple[int, int]:
    """Return the number of layers and the width of their embeddings."""
    channels, max_ell = model.hypers["num_channels"], model.hypers["max_ell"]
    width = channels * (max_ell + 1) if model.lkm_tap == "norms" else channels
    return model.hypers["num_interactions"], width


def indices(model: ACE, graph: Graph) -> tuple[Tensor, ...]:
    """Return additional index tensors: none."""
    return ()


INTERFACE = Interface("ace", sizes, lengths, arrays, embeddings, indices, trains=True)

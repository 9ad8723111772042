"""Inputs of the DimeNet++ kernel, see dimenetpp.cpp."""

from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor

from ...graph import Graph
from ...models import DimeNetPP
from ...models.dimenetpp import Interaction
from .interface import Interface, linears

HYPERS = (
    "hidden",
    "num_blocks",
    "triplet_dim",
    "basis_dim",
    "output_dim",
    "num_spherical",
    "num_radial",
    "envelope_exponent",
    "num_before_skip",
    "num_after_skip",
    "num_output_dense",
)


def sizes(model: DimeNetPP) -> list[int]:
    """Return the members of the C++ struct Sizes."""
    elements = model.embedding.atoms.num_embeddings
    head = int(model.lkm_tap == "head")
    return [
        *(model.hypers[name] for name in HYPERS),
        elements,
        model.spherical_basis.intervals,
        head,
    ]


def lengths(model: DimeNetPP) -> list[float]:
    """Return the cut-off in Å."""
    return [model.cutoff]


def arrays(model: DimeNetPP) -> Iterator[Tensor]:
    """Yield the weights in the order in which the kernel reads them.

    They are followed by products of weights, which the kernel computes itself after an update.
    """
    embedding = model.embedding
    yield model.radial_basis.frequencies
    yield model.spherical_basis.pieces
    yield embedding.atoms.weight
    yield from linears(embedding)
    yield from linears(model.interactions)
    yield from linears(model.outputs)
    for of_end in embedding.dense.weight.chunk(3, dim=1)[:2]:  # target, source
        yield (embedding.atoms.weight @ of_end.T).detach()
    for layer in cast(Iterable[Interaction], model.interactions):
        yield layer.radial_weight().detach()
        yield layer.angular_weight().detach()


def embeddings(model: DimeNetPP) -> tuple[int, int]:
    """Return the number of layers and the width of their embeddings."""
    width = "output_dim" if model.lkm_tap == "head" else "hidden"
    return model.hypers["num_blocks"] + 1, model.hypers[width]


def indices(model: DimeNetPP, graph: Graph) -> tuple[Tensor, ...]:
    """Return additional index tensors: none."""
    return ()


INTERFACE = Interface(
    "dimenetpp", sizes, lengths, arrays, embeddings, indices, trains=True, displacement=3e-4
)

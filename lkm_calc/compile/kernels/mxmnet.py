"""Inputs of the MXMNet kernel, see mxmnet.cpp."""

from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor, nn

from ...graph import Graph, LocalIndices
from ...models import MXMNet
from ...models.mxmnet import GlobalPass, LocalPass
from ...nn import Head
from .interface import MULTIPLEX_HYPERS, Interface, cutoffs, linears, of_distances, of_messages


def sizes(model: MXMNet) -> list[int]:
    """Return the members of the C++ struct Sizes."""
    elements = model.embedding.num_embeddings
    intervals = model.basis.spherical.intervals
    return [
        *(model.hypers[name] for name in MULTIPLEX_HYPERS),
        elements,
        intervals,
        int(model.lkm_tap == "head"),
    ]


def arrays(model: MXMNet) -> Iterator[Tensor]:
    """Yield the weights in the order in which the kernel reads them."""
    basis = model.basis
    yield from of_distances(basis, model.embedding)
    yield from linears(cast(nn.Module, basis.to_two_hop))
    yield from linears(basis.to_one_hop)
    for global_pass, local_pass, head in zip(
        cast(Iterable[GlobalPass], model.global_passes),
        cast(Iterable[LocalPass], model.local_passes),
        cast(Iterable[Head], model.heads),
        strict=True,
    ):
        messages = global_pass.messages
        yield from linears(global_pass.mlp)
        yield from of_messages(messages.message, messages.gate)
        yield from linears(global_pass.update)
        yield from linears(local_pass.mlp)
        yield from of_messages(local_pass.messages, local_pass.gates)
        for mlp in (local_pass.again, local_pass.two_hop, local_pass.one_hop):
            yield from linears(mlp)
        yield from linears(local_pass.update)
        yield from linears(head)


def embeddings(model: MXMNet) -> tuple[int, int]:
    """Return the number of layers and the width of their embeddings."""
    return model.hypers["num_layers"], model.hypers["hidden"]


def indices(model: MXMNet, graph: Graph) -> tuple[Tensor, ...]:
    """Return local edges, reverse local edges, and senders and receivers of angles."""
    return tuple(cast(LocalIndices, model.prepare(graph).local))


INTERFACE = Interface(
    "mxmnet", sizes, cutoffs, arrays, embeddings, indices, trains=True, displacement=None
)

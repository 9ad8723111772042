"""Inputs of the PAMNet kernel, see pamnet.cpp."""

from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor

from ...graph import Graph
from ...models import PAMNet
from ...models.pamnet import GlobalPass, LocalPass, ScoredHead
from .interface import MULTIPLEX_HYPERS, Interface, cutoffs, linears, of_distances, of_messages

HYPERS = (*MULTIPLEX_HYPERS, "two_hop")
TAPS = ("state", "global", "local", "head")


def sizes(model: PAMNet) -> list[int]:
    """Return the members of the C++ struct Sizes."""
    return [
        *(int(model.hypers[name]) for name in HYPERS),
        TAPS.index(model.lkm_tap),
        model.embedding.num_embeddings,
        model.basis.spherical.intervals,
    ]


def arrays(model: PAMNet) -> Iterator[Tensor]:
    """Yield the weights in the order in which the kernel reads them."""
    yield from of_distances(model.basis, model.embedding)
    for features in (model.basis.to_one_hop, model.basis.to_two_hop):
        if features is not None:
            yield from linears(features)
    heads = iter(cast(Iterable[ScoredHead], model.heads))
    for layer in zip(model.global_passes, model.local_passes, strict=True):
        for part in cast(tuple[GlobalPass, LocalPass], layer):
            yield from _pass(part)
            yield from _head(next(heads))


def _pass(part: GlobalPass | LocalPass) -> Iterator[Tensor]:
    """Yield the weights of a pass."""
    yield from linears(part.mlp)
    if isinstance(part, LocalPass):
        yield from of_messages(part.messages, part.gates)
        yield from linears(part.angles)
    else:
        yield from of_messages(part.messages.message, part.messages.gate)
    yield from linears(part.update)


def _head(head: ScoredHead) -> Iterator[Tensor]:
    yield from linears(head.head)
    yield head.score.weight


def embeddings(model: PAMNet) -> tuple[int, int]:
    """Return the number of layers and the width of their embeddings."""
    passes = 1 if model.lkm_tap in ("global", "local") else 2
    return passes * model.hypers["num_layers"], model.hypers["hidden"]


def indices(model: PAMNet, graph: Graph) -> tuple[Tensor, ...]:
    """Return additional index tensors: none, the kernel finds local edges by their lengths."""
    return ()


INTERFACE = Interface(
    "pamnet", sizes, cutoffs, arrays, embeddings, indices, trains=True, displacement=None
)

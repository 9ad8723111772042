"""Layer-to-Layer Knowledge Mixing (See, Zhang, Boley and Chalmers, arXiv:2510.20236)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def lkm_loss(
    embeddings: Sequence[Float[Tensor, "atoms dim"]],
    distance: Literal["mse", "mae"] = "mse",
    scale_free: bool = False,
    teacher: Literal["mean", "deeper", "neighbours"] | Tensor = "mean",
) -> Float[Tensor, ""]:
    """Return how far each layer's atom embeddings lie from a teacher, their mean over the layers.

    With e_ij the embedding of atom i after layer j of m, ē_i = (1/m) Σ_j e_ij and the loss is the
    mean over atoms, layers and channels of (e_ij − ē_i)², or of |e_ij − ē_i|. The paper adds it
    to the task loss with a weight γ. It has no parameters and costs nothing at inference.

    Other teachers are no part of the paper: t_ij = Σ_k w_jk e_ik instead of ē_i, brought to the
    length of e_ij. No gradient passes through them to the embeddings, so that a layer is changed by
    what it learns and not by what it teaches. Were they longer, a layer would grow after them and
    they with it, since layers are made of the ones before, without end. γ of one teacher is not
    that of another.

    Args:
        embeddings: One tensor a layer, all of one shape.
        distance: The squared or the absolute difference.
        scale_free: Divide each atom's distance by the mean square (or mean size) of its embeddings
            over layers and channels. Otherwise the loss falls as well when all of them shrink.
        teacher: ``"mean"`` of all layers; ``"deeper"``, the mean of those after layer j, where the
            last layer has none and is left out; ``"neighbours"``, that of the layers before and
            after it; or weights w_jk of one's own, (layers, layers) or (layers, layers, atoms),
            their first dimension 1 where all layers have one teacher.
            Gradients pass to weights that require them.

    Returns:
        A scalar. One layer alone gives zero.

    Raises:
        ValueError: There is no layer, the shapes differ, the distance or the teacher is unknown, or
            weights are of another shape.
    """
    shapes = {tuple(layer.shape) for layer in embeddings}
    if len(shapes) != 1:
        raise ValueError(
            "lkm_loss needs at least one layer and one shape for all of them; got "
            f"{[tuple(layer.shape) for layer in embeddings]}."
        )
    layers = torch.stack(list(embeddings))
    if distance not in ("mse", "mae"):
        raise ValueError(f"distance is {distance!r}; choose 'mse' or 'mae'.")
    students, target = _lessons(layers, teacher)
    size = torch.square if distance == "mse" else torch.abs
    distances = size(students - target).mean((0, 2))
    if scale_free:
        distances = distances / size(layers).mean((0, 2)).clamp_min(1e-12)
    return distances.mean()


def _lessons(
    layers: Float[Tensor, "layers atoms dim"], teacher: str | Tensor
) -> tuple[Float[Tensor, "students atoms dim"], Float[Tensor, "..."]]:
    """Return the layers that are taught, and what each is pulled toward, or all of them."""
    if isinstance(teacher, Tensor):
        students, weights = layers, _checked(teacher, *layers.shape[:2])
    elif teacher == "mean":
        return layers, layers.mean(0)
    else:
        weights = _weights(teacher, layers)
        students = layers[: len(weights)]
    if len(layers) == 1:
        return layers, layers.detach()
    fixed = students.detach()
    target = torch.einsum("jk...,k...d->j...d", weights, layers.detach())
    length = torch.linalg.vector_norm(fixed, dim=-1, keepdim=True)
    return students, length * torch.nn.functional.normalize(target, dim=-1)


def _weights(teacher: str, layers: Tensor) -> Float[Tensor, "students layers"]:
    """Return the weights of a teacher with a name."""
    above = layers.new_ones(len(layers), len(layers)).triu(1)
    if teacher == "deeper":
        chosen = above[:-1]
    elif teacher == "neighbours":
        next_one = above.tril(1)
        chosen = next_one + next_one.T
    else:
        raise ValueError(
            f"teacher is {teacher!r}; choose 'mean', 'deeper' or 'neighbours', or give weights."
        )
    return chosen / chosen.sum(1, keepdim=True)


def _checked(weights: Tensor, layers: int, atoms: int) -> Tensor:
    """Return weights, or raise a ValueError if they are of another shape than they must be."""
    first, *others = weights.shape or (0,)
    if first not in (1, layers) or tuple(others) not in ((layers,), (layers, atoms)):
        raise ValueError(
            f"The weights of the teacher are of shape {tuple(weights.shape)}; for {layers} layers "
            f"of {atoms} atoms it must be ({layers} or 1, {layers}), with {atoms} as a third "
            "dimension if each atom has its own."
        )
    return weights

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
    """Return the mean distance of each layer's atom embeddings to their mean over the layers.

    With e_ij the embedding of atom i after layer j of m, ē_i = (1/m) Σ_j e_ij and the loss is the
    mean over atoms, layers and channels of (e_ij − ē_i)², or of |e_ij − ē_i|. The paper adds it
    to the task loss with a weight γ. It has no parameters and no cost at inference.

    Other targets (``teacher``) are not in the paper: t_ij = Σ_k w_jk e_ik instead of ē_i, rescaled
    to the length of e_ij. No gradient flows through t_ij to the embeddings. Without the rescaling,
    embeddings can grow without bound, because a layer that grows towards a longer target makes the
    target, computed from later layers, longer as well. γ values of different targets are not
    comparable.

    Args:
        embeddings: One tensor per layer, all of the same shape.
        distance: Squared or absolute difference.
        scale_free: Divide each atom's distance by the mean square (or mean absolute value) of its
            embeddings over layers and channels. Otherwise the loss also decreases if all
            embeddings shrink.
        teacher: Target of layer j: ``"mean"`` of all layers; ``"deeper"``, the mean of the layers
            after j (the last layer has no target and is left out); ``"neighbours"``, the mean of
            the layers before and after j; or custom weights w_jk, (layers, layers) or (layers,
            layers, atoms), with a first dimension of 1 if all layers share a target. Gradients
            flow to weights that require them.

    Returns:
        A scalar; zero for a single layer.

    Raises:
        ValueError: There is no layer, shapes differ, or the distance, teacher or shape of the
            weights is invalid.
    """
    shapes = {tuple(layer.shape) for layer in embeddings}
    if len(shapes) != 1:
        raise ValueError(
            "lkm_loss needs at least one layer, all of one shape; got shapes "
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
    """Return the layers to be pulled and their targets."""
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
    """Return the weights of a named teacher."""
    above = layers.new_ones(len(layers), len(layers)).triu(1)
    if teacher == "deeper":
        chosen = above[:-1]
    elif teacher == "neighbours":
        next_one = above.tril(1)
        chosen = next_one + next_one.T
    else:
        raise ValueError(
            f"teacher is {teacher!r}; choose 'mean', 'deeper' or 'neighbours', or pass weights."
        )
    return chosen / chosen.sum(1, keepdim=True)


def _checked(weights: Tensor, layers: int, atoms: int) -> Tensor:
    """Return weights, or raise a ValueError if their shape is wrong."""
    first, *others = weights.shape or (0,)
    if first not in (1, layers) or tuple(others) not in ((layers,), (layers, atoms)):
        raise ValueError(
            f"The weights of the teacher have shape {tuple(weights.shape)}; for {layers} layers "
            f"and {atoms} atoms it must be ({layers} or 1, {layers}), with {atoms} as a third "
            "dimension for weights per atom."
        )
    return weights

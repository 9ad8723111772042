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
) -> Float[Tensor, ""]:
    """Return how far each layer's atom embeddings lie from their mean over the layers.

    With e_ij the embedding of atom i after layer j of m, ē_i = (1/m) Σ_j e_ij and the loss is the
    mean over atoms, layers and channels of (e_ij − ē_i)², or of |e_ij − ē_i|. The paper adds it
    to the task loss with a weight γ. It has no parameters and costs nothing at inference.

    Args:
        embeddings: One tensor a layer, all of one shape.
        distance: The squared or the absolute difference.
        scale_free: Divide each atom's distance by the mean square (or mean size) of its embeddings
            over layers and channels. Otherwise the loss falls as well when all of them shrink.

    Returns:
        A scalar. One layer alone gives zero.

    Raises:
        ValueError: There is no layer, the shapes differ, or the distance is unknown.
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
    size = torch.square if distance == "mse" else torch.abs
    distances = size(layers - layers.mean(0)).mean((0, 2))
    if scale_free:
        distances = distances / size(layers).mean((0, 2)).clamp_min(1e-12)
    return distances.mean()

"""Disagreement between the layers of a model for each atom."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def layer_disagreement(embeddings: Sequence[Float[Tensor, "atoms dim"]]) -> Float[Tensor, " atoms"]:
    """Return the root mean square distance of each atom's embeddings to their mean over layers.

    With e_ij the embedding of atom i after layer j, it is the root of the mean over layers and
    channels of (e_ij − ē_i)², the quantity that :func:`lkm_calc.lkm_loss` minimises. Models return
    their embeddings with every prediction, so it costs almost nothing. It is dimensionless.

    It predicts force errors about as well as the magnitude of the force does, and detects unseen
    molecules with some models only. The latent distance, computed from the same embeddings, is
    better: see :mod:`lkm_calc.embeddings.latent` and ``python -m benchmarks.uncertainty``.

    Args:
        embeddings: Embeddings of at least two layers.

    Raises:
        ValueError: There are fewer than two layers.
    """
    if len(embeddings) < 2:
        raise ValueError(
            f"layer_disagreement needs at least two layers; the model returned {len(embeddings)}. "
            "Use a model with more layers, or a committee."
        )
    layers = torch.stack(list(embeddings)).double()
    return (layers - layers.mean(0)).square().mean((0, 2)).sqrt()

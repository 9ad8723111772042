"""How far the layers of a model disagree about each atom."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def layer_disagreement(embeddings: Sequence[Float[Tensor, "atoms dim"]]) -> Float[Tensor, " atoms"]:
    """Return the root mean square distance of each atom's embeddings to their mean over layers.

    With e_ij the embedding of atom i after layer j it is the root of the mean over layers and
    channels of (e_ij − ē_i)²: what :func:`lkm_calc.lkm_loss` makes small in training. A model
    returns its embeddings with every prediction, so it costs nothing. Its unit is the network's
    own.

    As an estimate of the force error of an atom it is worth about as much as the size of the force,
    by model a little more or less; large values tell of foreign molecules with some models and not
    with others. The distance of the same embeddings from those of the training set tells more, see
    :mod:`lkm_calc.embeddings.latent`: ``python -m benchmarks.uncertainty``.

    Args:
        embeddings: Of two layers or more.

    Raises:
        ValueError: There are fewer than two layers.
    """
    if len(embeddings) < 2:
        raise ValueError(
            f"Layers cannot disagree where there is {len(embeddings)}. Use a model with more "
            "layers, or a committee of models."
        )
    layers = torch.stack(list(embeddings)).double()
    return (layers - layers.mean(0)).square().mean((0, 2)).sqrt()

"""What is computed from the embeddings that a model returns, one tensor a layer.

The loss of Layer-to-Layer Knowledge Mixing, how far the layers disagree about an atom, and how far
an atom lies from those of the training set. Nothing here knows an architecture.
"""

from .disagreement import layer_disagreement as layer_disagreement
from .latent import PREFIX as PREFIX
from .latent import LatentSpace as LatentSpace
from .latent import fit_latent as fit_latent
from .latent import latent_from_tensors as latent_from_tensors
from .lkm import lkm_loss as lkm_loss

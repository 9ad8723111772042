"""Functions of the embeddings that a model returns, one tensor per layer, for any architecture.

The LKM loss, the disagreement between layers, and the latent distance from the training set.
"""

from .disagreement import layer_disagreement as layer_disagreement
from .latent import LATENT_PREFIX as LATENT_PREFIX
from .latent import LatentSpace as LatentSpace
from .latent import fit_latent as fit_latent
from .latent import latent_from_tensors as latent_from_tensors
from .lkm import lkm_loss as lkm_loss

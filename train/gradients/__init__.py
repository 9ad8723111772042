"""The loss of a batch and its gradients with respect to the weights.

:func:`gradient_function` selects how a run computes them. All implementations are a
:class:`GradientFunction`: they are called with a batch, add its gradients to those of the weights
and return the losses. In order of priority:

- ``CUDAGraphGradients`` replays double backward as a CUDA graph. Selected with
  ``run.cuda_graphs``. Only the first ``MAX_GRAPHS`` shapes of batches are captured; others use
  double backward directly. In cuda_graphs.py.
- ``KernelGradients`` avoids second derivatives: it uses parameter gradients of a C++ kernel at
  displaced positions. Selected with ``run.kernels = "auto"``, the default, if the model has a
  kernel that supports training (all bundled architectures on a CPU), no atom of the training
  frames is isolated, and the loss depends only on energies, forces, stress and embeddings.
  The first batch is compared with double backward, which is used instead, with a single warning, if
  the gradients differ or there is no working compiler. In first_order.py.
- ``CompiledGradients`` is double backward compiled by torch's Inductor. Selected with
  ``run.compile``. Each program is compared with double backward, which is used instead, with a
  single warning, if the gradients differ or there is no compiler, and for further shapes of
  batches. In compiled.py.
- ``DoubleBackward`` uses autograd, for everything else. In protocol.py.
"""

from .choice import gradient_function as gradient_function
from .choice import trains_by_kernel as trains_by_kernel
from .compiled import Programs as Programs
from .compiled import program_key as program_key
from .first_order import KernelGradients as KernelGradients
from .isolated import as_trained as as_trained
from .loss import Losses as Losses
from .loss import training_loss as training_loss
from .mixing import LearnedTeacher as LearnedTeacher
from .mixing import learned_teacher as learned_teacher
from .mixing import teacher_of as teacher_of
from .protocol import DoubleBackward as DoubleBackward
from .protocol import GradientFunction as GradientFunction

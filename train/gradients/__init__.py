"""The loss of a batch and its gradients by the weights, behind one function.

:func:`gradient_function` chooses how a run computes them. All variants are a
:class:`GradientFunction`: they are called with a batch, add its gradients to those of the weights
and return the losses. In the order in which they are considered:

- ``CUDAGraphGradients`` replay double backward as a CUDA graph. Chosen with
  ``run.cuda_graphs``. Batches of more than ``MAX_GRAPHS`` shapes fall back to double backward. In
  cuda_graphs.py.
- ``KernelGradients`` need no second derivatives: parameter gradients of a C++ kernel at displaced
  positions. Chosen with ``run.kernels = "auto"``, the default, where the model has a kernel that
  trains (``ace`` on a CPU), no atom of the training frames is isolated, and the loss depends on
  results alone. The first batch is compared with double backward, which takes over with one warning
  if they differ or where there is no working compiler. In first_order.py.
- ``CompiledGradients`` are double backward compiled by torch's Inductor. Chosen with
  ``run.compile``. Each program is compared with double backward, which takes over with one warning
  where there is no compiler or they differ, and for batches of further shapes. In compiled.py.
- ``DoubleBackward`` is autograd, for everything else. In protocol.py.
"""

from .choice import gradient_function as gradient_function
from .choice import trains_by_kernel as trains_by_kernel
from .compiled import Programs as Programs
from .compiled import program_key as program_key
from .isolated import as_trained as as_trained
from .loss import Losses as Losses
from .loss import training_loss as training_loss
from .mixing import LearnedTeacher as LearnedTeacher
from .mixing import learned_teacher as learned_teacher
from .mixing import teacher_of as teacher_of
from .protocol import DoubleBackward as DoubleBackward
from .protocol import GradientFunction as GradientFunction

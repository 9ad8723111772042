"""Energy and forces made fast: kernels, compiled programs and CUDA graphs behind one function.

:func:`force_function` chooses how to compute energy and forces of a model on its device. All
variants are a :class:`ForceFunction`: they are called with a graph, return what
:func:`lkm_calc.energy_and_forces` returns, and give the same numbers.

- ``KernelForces`` uses the C++ kernel of the architecture. Chosen with ``compile`` on a CPU, in
  float32 and float64, for ``ace``, ``dimenet++``, ``mxmnet`` and ``pamnet``, also with ZBL.
  In kernel_forces.py and kernels/.
- ``ProgramForces`` uses programs of fixed shapes, made as structures need them. Chosen with
  ``compile`` for all other models and devices: on a CPU compiled by torch's AOTInductor (aot.py),
  on a GPU captured as a CUDA graph (cuda_graphs.py). In programs.py, with traced.py and padding.py.
- ``UncompiledForces`` uses the model and autograd. Chosen without ``compile``, and what the
  others fall back to. In protocol.py.

Compiled code is compared with ``UncompiledForces`` before it is used, a kernel once and a program
for each capacity. Where there is no compiler, or energies or forces differ by more than
:data:`TOLERANCE`, there is one warning and everything is computed by ``UncompiledForces``. Where
compiled code is no faster, ``UncompiledForces`` takes its place and the log says so. Several
structures at once, as in :meth:`lkm_calc.LKMCalculator.evaluate`, are computed by kernels but not
by programs.
"""

from .choice import force_function as force_function
from .cuda_graphs import Capture as Capture
from .cuda_graphs import capture_cuda_graph as capture_cuda_graph
from .kernels import Kernel as Kernel
from .kernels import trains as trains
from .padding import Capacity as Capacity
from .padding import pad as pad
from .padding import unpad as unpad
from .protocol import TOLERANCE as TOLERANCE
from .protocol import ForceFunction as ForceFunction

"""Fast evaluation of energy and forces: C++ kernels, compiled programs and CUDA graphs.

:func:`force_function` selects how energy and forces of a model are computed on its device. All
implementations are a :class:`ForceFunction`: they are called with a graph, return an
:class:`lkm_calc.EnergyForces` like :func:`lkm_calc.energy_and_forces`, and agree with it within
:data:`TOLERANCE`.

- ``KernelForces`` uses the C++ kernel of the architecture. Selected with ``compile`` on a CPU, in
  float32 and float64, for ``ace``, ``dimenet++``, ``mxmnet`` and ``pamnet``, with or without ZBL.
  In kernel_forces.py and kernels/.
- ``ProgramForces`` uses programs of fixed shapes, compiled on demand. Selected with ``compile``
  for all other models and devices: on a CPU compiled by torch's AOTInductor (aot.py), on a GPU
  captured as a CUDA graph (cuda_graphs.py). In programs.py, with traced.py and padding.py.
- ``UncompiledForces`` uses the model and autograd. Selected without ``compile``, and the fallback
  of the others. In protocol.py.

Compiled code is compared with ``UncompiledForces`` before it is used: a kernel once, a program
for each capacity. If there is no compiler, or energies or forces differ by more than
:data:`TOLERANCE`, a single warning is issued and ``UncompiledForces`` is used from then on. It is
also used, with a log message, where compiled code is not faster. Batches of several structures, as
in :meth:`lkm_calc.LKMCalculator.evaluate`, are supported by kernels but not by programs.
"""

from .choice import force_function as force_function
from .cuda_graphs import Capture as Capture
from .cuda_graphs import capture_cuda_graph as capture_cuda_graph
from .kernels import Kernel as Kernel
from .kernels import library as library
from .kernels import trains as trains
from .padding import Capacity as Capacity
from .padding import pad as pad
from .padding import unpad as unpad
from .protocol import TOLERANCE as TOLERANCE
from .protocol import ForceFunction as ForceFunction

"""Energy and forces made fast: kernels, compiled programs and CUDA graphs behind one door.

:func:`compiled_forces` chooses for a model and its device; what it returns is called like
:func:`lkm_calc.energy_and_forces` and gives the same numbers.
"""

from .kernel_forces import compiled_forces as compiled_forces
from .kernels import Kernel as Kernel
from .kernels import trains as trains
from .padding import Capacity as Capacity
from .padding import pad as pad
from .padding import unpad as unpad
from .programs import ordinary as ordinary
from .recording import Recorder as Recorder
from .recording import record_cuda_graph as record_cuda_graph

"""C++ kernels for energy and forces, one per architecture, for all hyperparameters and structures.

The gradients are derived by hand. The local compiler builds a library from the source in the folder
cpp within seconds, optimised for the local processor, and the library is cached.
"""

from .build import library as library
from .kernel import Kernel as Kernel
from .kernel import has_kernel as has_kernel
from .kernel import trains as trains
from .zbl import ZBLKernel as ZBLKernel
from .zbl import kernel_of as kernel_of

"""Energy and forces written out in C++, for all models of an architecture and all structures.

The gradients are derived by hand. A library is built from the source in the folder cpp within
seconds by the compiler of the machine, for its processor, and kept in the user's folder of
programs.
"""

from .kernel import Kernel as Kernel
from .kernel import has_kernel as has_kernel
from .kernel import trains as trains
from .zbl import ZBLKernel as ZBLKernel
from .zbl import kernel_of as kernel_of

"""Check the named axes of every annotated tensor while the tests run, and keep torch to itself."""

import torch
from jaxtyping import install_import_hook

install_import_hook(["lkm_calc", "train"], "beartype.beartype")

torch.set_num_threads(1)  # small systems: a second thread costs more than it brings

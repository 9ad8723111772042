"""Data-parallel training: each process computes a part of every batch.

The processes are started by torchrun. All have the same weights, optimisers and averages; gradients
are summed over the processes once per step, and all perform the same step. DistributedDataParallel
is not used, because it hooks into a single backward pass, while forces are themselves gradients,
and because its mean over processes would give structures in parts of different size different
weights.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor


class Workers(NamedTuple):
    """The processes of a run."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the first process, which writes the files."""
        return self.rank == 0

    def part(self, indices: Int[Tensor, " batch"]) -> Int[Tensor, " part"]:
        """Return the part of a batch for this process, which may be empty."""
        return indices[self.rank :: self.size]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over the processes, in place."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def from_first(self, value: float, device: torch.device) -> float:
        """Return the value of the first process in every process."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return float(shared)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


@dataclass
class Stop:
    """Whether to stop after this step, agreed among all processes."""

    signals: list[int]
    """Signals received by this process."""
    team: Workers
    agreed: bool = False
    """Whether the processes have agreed to stop."""
    pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __bool__(self) -> bool:
        return self.agreed if self.team.size > 1 else bool(self.signals)

    def agree(self, asked: Tensor) -> None:
        """Receive the number of processes that want to stop, (1) on the device.

        On a GPU it is read one step later, to avoid synchronisation.
        """
        if asked.device.type != "cuda":
            self.agreed = asked.item() > 0
            return
        copied, arrived = torch.empty(1, dtype=asked.dtype, pin_memory=True), torch.cuda.Event()
        copied.copy_(asked, non_blocking=True)
        arrived.record()
        if self.pending is not None:
            before, ready = self.pending
            ready.synchronize()
            self.agreed = self.agreed or before.item() > 0
        self.pending = copied, arrived


def own_device(name: str) -> str:
    """Return the device name with the GPU of this process, if there are several processes.

    If a scheduler makes a single GPU visible to each process, it is ``cuda:0`` for all of them.

    Raises:
        ValueError: There are more processes than GPUs.
    """
    if name not in ("auto", "cuda") or "LOCAL_RANK" not in os.environ:
        return name
    if not torch.cuda.is_available():
        return name
    rank, shown = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if 1 < shown <= rank:
        raise ValueError(
            f"There is no GPU for process {rank} (counted from 0) on this machine, which has "
            f"{shown}. Start one process per GPU (--nproc-per-node {shown})."
        )
    return f"cuda:{rank if shown > 1 else 0}"


def first_process() -> bool:
    """Return whether this is the first or only process of a run."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def workers(device: torch.device) -> Iterator[Workers]:
    """Initialise the process group if started by torchrun, and destroy it at the end.

    Uses NCCL for GPUs and gloo for CPUs. Without torchrun there is one process.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Workers()
        return
    # The others wait while the first one validates, tests and plots; torchrun ends them if it dies.
    patience = timedelta(days=2)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=patience, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=patience)
    try:
        yield Workers(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()

"""Several processes that train one model: each computes a part of every batch.

The processes are started by torchrun, which tells each its rank. Every process holds the same
weights, optimiser and averages; the gradients of its part of the batch are added to those of the
others in one message a step, and all make the same step. DistributedDataParallel is not used: it
hooks into one backward pass, while forces are themselves gradients, and its means over processes
would weight the structures of uneven parts unevenly.
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
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def part(self, indices: Int[Tensor, " batch"]) -> Int[Tensor, " part"]:
        """Return this process's part of a batch, which may be empty."""
        return indices[self.rank :: self.size]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors up over the processes, in place."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def from_first(self, value: float, device: torch.device) -> float:
        """Return the first process's value in every process."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return float(shared)

    def wait(self) -> None:
        """Wait until every process has come this far."""
        if self.size > 1:
            dist.barrier()


@dataclass
class Stop:
    """Whether to stop after this step; of several processes, all after the same one."""

    signals: list[int]
    """Those that this process received."""
    team: Workers
    agreed: bool = False
    """Whether a process had received one, as far as all know."""
    pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __bool__(self) -> bool:
        return self.agreed if self.team.size > 1 else bool(self.signals)

    def agree(self, asked: Tensor) -> None:
        """Take note of the number of processes that want to stop, (1) on the device.

        On a GPU it is read a step later, when it has long arrived: a processor that waited for it
        now would let the GPU run dry.
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
    """Return the name of this process's GPU, where several on a machine would take the same.

    A scheduler may show each process one GPU alone, which is the first one for all of them.

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
            f"Process {rank} (counted from 0) of this machine has no GPU of its own: there are "
            f"{shown}. Start as many processes as there are GPUs (--nproc-per-node {shown})."
        )
    return f"cuda:{rank if shown > 1 else 0}"


def first_process() -> bool:
    """Tell whether this process is the first one of a run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def workers(device: torch.device) -> Iterator[Workers]:
    """Join the processes that torchrun started, and leave them at the end.

    NCCL joins GPUs and gloo CPUs. Without torchrun there is one process.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Workers()
        return
    # The others wait while the first one validates, tests and draws; torchrun ends them if it dies.
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

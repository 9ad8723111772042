"""A faster route for float32 matrix products on CPUs, taken only where it loses no accuracy."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch


class Shared:
    """A setting of the whole process, made by the first of several threads and undone by the last.

    If each thread set back what it found, one would find what another one has set, and leave it.
    """

    def __init__(self, make: Callable[[], Callable[[], None]]) -> None:
        self.make = make
        self.lock, self.depth = threading.Lock(), 0
        self.undo: Callable[[], None] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the setting made for a while."""
        with self.lock:
            if self.depth == 0:
                self.undo = self.make()
            self.depth += 1
        try:
            yield
        finally:
            with self.lock:
                self.depth -= 1
                if self.depth == 0:
                    self.undo()


@cache
def onednn_is_exact() -> bool:
    """Tell whether oneDNN's reduced-precision route computes in full float32 on this machine.

    Where a CPU lacks units for bfloat16 products (AMX), oneDNN computes in float32 whatever the
    flag says. Its error against float64 then equals that of the ordinary route; with real
    bfloat16 it is 10⁴ times larger.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    a, b = (
        torch.randn(256, 256, generator=generator, dtype=torch.float32, device="cpu")
        for _ in range(2)
    )
    exact = a.double() @ b.double()
    with torch.autocast("cpu", enabled=False):  # the answer is kept for all calls
        with _matmul_route("ieee"):
            ordinary = (a @ b - exact).abs().max()
        with _matmul_route("bf16"):
            routed = (a @ b - exact).abs().max()
    return bool(routed <= 2 * ordinary)


def set_route(settings: Any, precision: str) -> Callable[[], None]:
    """Set how float32 matrix products are computed, and return what sets it back.

    Args:
        settings: ``torch.backends.mkldnn.matmul`` or ``torch.backends.cuda.matmul``.
        precision: "ieee", "tf32" or "bf16".
    """
    before = settings.fp32_precision
    settings.fp32_precision = precision

    def undo() -> None:
        settings.fp32_precision = "none"  # follow the more general setting, if it is that
        if settings.fp32_precision != before:
            settings.fp32_precision = before

    return undo


@contextmanager
def _matmul_route(precision: str) -> Iterator[None]:
    """Take a route of float32 matrix products on the CPU for a while."""
    undo = set_route(torch.backends.mkldnn.matmul, precision)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        undo()


_BY_ONEDNN = Shared(
    lambda: set_route(torch.backends.mkldnn.matmul, "bf16")  # type: ignore[attr-defined]
)


MIN_ROWS = 200
"""Number of rows above which oneDNN's set-up of about 10 µs a product pays."""


@contextmanager
def fast_matmul(rows: int = MIN_ROWS) -> Iterator[None]:
    """Send float32 matrix products on the CPU through oneDNN where that is as accurate.

    Twice as fast on AMD processors, where the default route does not use AVX-512. No effect on
    other dtypes and devices, on products too small for it, or where a check finds a loss of
    accuracy; the setting is restored on leaving.

    Args:
        rows: Number of rows of the larger products, that is of edges.
    """
    if rows >= MIN_ROWS and onednn_is_exact():
        with _BY_ONEDNN.held():
            yield
    else:
        yield


@contextmanager
def tf32_matmul(enabled: bool) -> Iterator[None]:
    """Let float32 matrix products on CUDA round their factors to TF32, or not, for a while."""
    undo = set_route(torch.backends.cuda.matmul, "tf32" if enabled else "ieee")
    try:
        yield
    finally:
        undo()


@contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Let torch take only algorithms that give the same bits every time, for a while.

    On a GPU sums over edges (``index_add``) otherwise add in the order in which threads finish. On
    a CPU with one thread results are the same bits anyway. The setting holds for the whole process
    until it is set back at the end.

    Args:
        enabled: False changes nothing.

    Raises:
        RuntimeError: Within, on CUDA: matrix products too need the environment variable
            CUBLAS_WORKSPACE_CONFIG=:4096:8, set before Python starts; torch says so.
    """
    with _DETERMINISTIC.held() if enabled else nullcontext():
        yield


def _set_deterministic() -> Callable[[], None]:
    """Allow deterministic algorithms only, and return what allows again what was allowed."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it has not written; filling it first costs time.
    memory.fill_uninitialized_memory = False

    def undo() -> None:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)

    return undo


_DETERMINISTIC = Shared(_set_deterministic)

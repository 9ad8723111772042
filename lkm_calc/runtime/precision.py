"""Settings of torch: faster float32 matrix products at equal accuracy, TF32, determinism."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch


class Shared:
    """A process-wide setting, made by the first of several threads and restored by the last.

    If each thread restored the value that it found, one could restore the value set by another.
    """

    def __init__(self, make: Callable[[], Callable[[], None]]) -> None:
        self.make = make
        self.lock, self.depth = threading.Lock(), 0
        self.undo: Callable[[], None] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Apply the setting temporarily."""
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
    """Return whether oneDNN's "bf16" setting computes in full float32 on this machine.

    Without hardware for bfloat16 products (AMX), oneDNN computes in float32 regardless of the
    setting. The error against float64 then equals that of the default backend; with actual bfloat16
    it is 10⁴ times larger.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    a, b = (
        torch.randn(256, 256, generator=generator, dtype=torch.float32, device="cpu")
        for _ in range(2)
    )
    exact = a.double() @ b.double()
    with torch.autocast("cpu", enabled=False):  # the result is cached
        with _matmul_route("ieee"):
            ordinary = (a @ b - exact).abs().max()
        with _matmul_route("bf16"):
            routed = (a @ b - exact).abs().max()
    return bool(routed <= 2 * ordinary)


def set_route(settings: Any, precision: str) -> Callable[[], None]:
    """Set how float32 matrix products are computed; return a function that restores the setting.

    Args:
        settings: ``torch.backends.mkldnn.matmul`` or ``torch.backends.cuda.matmul``.
        precision: "ieee", "tf32" or "bf16".
    """
    before = settings.fp32_precision
    settings.fp32_precision = precision

    def undo() -> None:
        settings.fp32_precision = "none"  # follow the more general setting, if that was used
        if settings.fp32_precision != before:
            settings.fp32_precision = before

    return undo


@contextmanager
def _matmul_route(precision: str) -> Iterator[None]:
    """Set the precision of float32 matrix products on the CPU temporarily."""
    undo = set_route(torch.backends.mkldnn.matmul, precision)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        undo()


_BY_ONEDNN = Shared(
    lambda: set_route(torch.backends.mkldnn.matmul, "bf16")  # type: ignore[attr-defined]
)


MIN_ROWS = 200
"""Number of rows above which oneDNN's overhead of about 10 µs per product pays off."""


@contextmanager
def fast_matmul(rows: int = MIN_ROWS) -> Iterator[None]:
    """Use oneDNN for float32 matrix products on the CPU temporarily, if it is as accurate.

    It is twice as fast on AMD processors, where the default backend does not use AVX-512. There is
    no effect on other dtypes and devices, for small products, or if a check finds a loss of
    accuracy.

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
    """Enable or disable TF32 for float32 matrix products on CUDA temporarily."""
    undo = set_route(torch.backends.cuda.matmul, "tf32" if enabled else "ieee")
    try:
        yield
    finally:
        undo()


@contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Use only deterministic algorithms of torch temporarily, for bitwise reproducible results.

    On a GPU, sums over edges (``index_add``) otherwise depend on the order in which threads finish.
    On a CPU with one thread results are always reproducible. The setting is process-wide.

    Args:
        enabled: False changes nothing.

    Raises:
        RuntimeError: Raised by torch on CUDA if the environment variable
            CUBLAS_WORKSPACE_CONFIG=:4096:8, needed for matrix products, was not set before Python
            started.
    """
    with _DETERMINISTIC.held() if enabled else nullcontext():
        yield


def _set_deterministic() -> Callable[[], None]:
    """Allow deterministic algorithms only; return a function that restores the setting."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # No code here reads uninitialised memory; filling it would cost time.
    memory.fill_uninitialized_memory = False

    def undo() -> None:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)

    return undo


_DETERMINISTIC = Shared(_set_deterministic)

"""A faster route for float32 matrix products on CPUs, taken only where it loses no accuracy."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


@cache
def _onednn_is_exact() -> bool:
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
    with _matmul_route("ieee"):
        ordinary = (a @ b - exact).abs().max()
    with _matmul_route("bf16"):
        routed = (a @ b - exact).abs().max()
    return bool(routed <= 2 * ordinary)


@contextmanager
def _matmul_route(precision: str) -> Iterator[None]:
    """Set the route of float32 matrix products on the CPU, and set it back at the end."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before


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
    if rows >= MIN_ROWS and _onednn_is_exact():
        with _matmul_route("bf16"):
            yield
    else:
        yield


@contextmanager
def tf32_matmul(enabled: bool) -> Iterator[None]:
    """Let float32 matrix products on CUDA round their factors to TF32, or not, for a while."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "tf32" if enabled else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


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
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it has not written; filling it first costs time.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)

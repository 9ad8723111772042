"""Isolation from torch settings of the caller, which must not change results.

These are ``torch.autocast``, the precision of float32 matrix products
(``torch.set_float32_matmul_precision``), the default device and inference mode. The default dtype
matters only where weights are created, see :func:`float32_by_default`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from .precision import Shared, onednn_is_exact, set_route

P = ParamSpec("P")
R = TypeVar("R")

_EXACT = ("none", "ieee")
"""Settings with which float32 matrix products are computed in full float32."""
_CPU = torch.device("cpu")


class _Inside(threading.local):
    """Whether this thread is inside a function that has already isolated its settings."""

    held = False


_INSIDE = _Inside()


def own_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to give bitwise identical results whatever its caller has set in torch.

    The overhead is about 4 µs if nothing is set, and a tenth of that inside another such function.
    Settings made by the function itself apply to everything that it calls.

    The precision of matrix products is a process-wide setting; it is changed during the call, and
    only if the caller has lowered it. All other settings are per thread.
    """
    return _insulated(function, torch.is_inference_mode_enabled)


def own_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate like :func:`own_settings`, but keep inference mode, for code without gradients."""
    return _insulated(function, lambda: False)


def _insulated(function: Callable[P, R], leave_inference: Callable[[], bool]) -> Callable[P, R]:
    """Wrap a function so that it runs with torch's initial settings."""

    @wraps(function)
    def insulated(*arguments: P.args, **options: P.kwargs) -> R:
        if _INSIDE.held or torch.compiler.is_compiling():
            return function(*arguments, **options)
        _INSIDE.held = True
        try:
            leave = leave_inference()
            if not (leave or _precision_changed()):
                return function(*arguments, **options)
            with torch.inference_mode(False) if leave else nullcontext(), _usual_precision():
                return function(*arguments, **options)
        finally:
            _INSIDE.held = False

    return insulated


def _precision_changed() -> bool:
    """Return whether the caller has changed precision or default device."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or _lowered()
        or torch.get_default_device() != _CPU
    )


def _lowered() -> bool:
    """Return whether float32 products have reduced precision, or would without another thread."""
    if _FLOAT32_PRODUCTS.depth > 0 or torch.backends.cuda.matmul.fp32_precision not in _EXACT:
        return True
    on_cpu = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return on_cpu not in _EXACT and not onednn_is_exact()


@contextmanager
def _usual_precision() -> Iterator[None]:
    """Set torch's initial precision and default device temporarily."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != _CPU:
            stack.enter_context(_CPU)
        if _lowered():
            stack.enter_context(_FLOAT32_PRODUCTS.held())
        yield


def _set_float32_products() -> Callable[[], None]:
    """Compute float32 matrix products in float32; return a function that restores the setting."""
    routes: list[Any] = [torch.backends.cuda.matmul]
    if not onednn_is_exact():  # otherwise fast_matmul sets the backend
        routes.append(torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    undo_each = [set_route(route, "ieee") for route in routes]

    def undo() -> None:
        for undo_one in undo_each:
            undo_one()

    return undo


_FLOAT32_PRODUCTS = Shared(_set_float32_products)


def _set_float32() -> Callable[[], None]:
    """Set the default dtype to float32; return a function that restores it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    return lambda: torch.set_default_dtype(before)


_FLOAT32 = Shared(_set_float32)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Create new weights in float32 temporarily, whatever the default dtype.

    Random numbers depend on the dtype, and orthogonal initialisation fails in float16. The default
    dtype is process-wide; it is changed only if it is not float32.
    """
    if torch.get_default_dtype() == torch.float32 and _FLOAT32.depth == 0:
        yield
    else:
        with _FLOAT32.held():
            yield

"""What a caller has set in torch for work of their own, and must not change results here.

Those are ``torch.autocast``, lower precision of float32 matrix products
(``torch.set_float32_matmul_precision``), another default device and inference mode. The default
dtype matters only where weights are made, see :func:`float32_by_default`.
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
"""Precisions of float32 matrix products that are float32."""
_CPU = torch.device("cpu")


class _Inside(threading.local):
    """Whether this thread is within a function that has seen to its settings."""

    held = False


_INSIDE = _Inside()


def own_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function compute the same, to the bit, whatever its caller has set in torch.

    A decorator. Where nothing is set it costs some 4 µs, and within another such function a tenth
    of that. What the function itself sets, as a training may, holds for all that it calls.

    The precision of matrix products is a setting of the whole process; it is set for the duration
    of the call, and only where the caller has lowered it. All else is that of the thread.
    """
    return _insulated(function, torch.is_inference_mode_enabled)


def own_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Do as :func:`own_settings`, but stay in inference mode: no gradient is taken within."""
    return _insulated(function, lambda: False)


def _insulated(function: Callable[P, R], leave_inference: Callable[[], bool]) -> Callable[P, R]:
    """Set around a function what torch starts with, where it is not set already."""

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
    """Tell whether the caller has set another precision or default device."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or _lowered()
        or torch.get_default_device() != _CPU
    )


def _lowered() -> bool:
    """Tell whether float32 matrix products lose digits, or would but for another thread."""
    if _FLOAT32_PRODUCTS.depth > 0 or torch.backends.cuda.matmul.fp32_precision not in _EXACT:
        return True
    on_cpu = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return on_cpu not in _EXACT and not onednn_is_exact()


@contextmanager
def _usual_precision() -> Iterator[None]:
    """Set precision and default device as torch starts with them, for a while."""
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
    """Compute float32 matrix products in float32, and return what sets back what was set."""
    routes: list[Any] = [torch.backends.cuda.matmul]
    if not onednn_is_exact():  # where it is, fast_matmul sets the route
        routes.append(torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    undo_each = [set_route(route, "ieee") for route in routes]

    def undo() -> None:
        for undo_one in undo_each:
            undo_one()

    return undo


_FLOAT32_PRODUCTS = Shared(_set_float32_products)


def _set_float32() -> Callable[[], None]:
    """Make float32 the default dtype, and return what sets back what was set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    return lambda: torch.set_default_dtype(before)


_FLOAT32 = Shared(_set_float32)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make new weights in float32 for a while, whatever the default dtype.

    Random numbers depend on it, and no matrix can be made orthogonal in float16. The default dtype
    is one of the whole process; it is set only where it is another one.
    """
    if torch.get_default_dtype() == torch.float32 and _FLOAT32.depth == 0:
        yield
    else:
        with _FLOAT32.held():
            yield

"""A GPU that there is not: tensors that call themselves CUDA's and are computed on the CPU.

Within :func:`fake_gpu` every tensor made on, or moved to, a CUDA device holds real values and obeys
the rules of a real one. An operation that joins it with tensors of the CPU is refused, but for
numbers (tensors without dimensions) in pointwise operations and for indices; and all that makes the
processor wait is noted (copies that are sent from pageable memory are not: a real one may stage
them first). So whole calculations can be run, data-dependent sizes included.

To torch's C++, which knows no CUDA on such machines, they are tensors on the device "meta".
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
META = torch.device("meta")
CPU = torch.device("cpu")
aten = torch.ops.aten

WAITING = {
    aten._linalg_eigh.default,
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.allclose.default,
    aten.bincount.default,
    aten.equal.default,
    aten.linalg_inv_ex.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
"""Operations whose result, or its size, the processor must know."""
COPYING = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
MAKING = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


class GPUTensor(Tensor):
    """A tensor of the fake GPU, with its values in one of the CPU."""

    @staticmethod
    def __new__(cls, held):
        new = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=META,
        )
        new.held = held
        return new

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} is called with a tensor of a GPU that is gone")

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def __reduce_ex__(self, protocol):
        return self.detach().cpu().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied.detach(), self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]


def _held(tensor):
    return tensor.held if isinstance(tensor, GPUTensor) else tensor


def _mapped(value, function, found):
    """Return a value with a function of each of its tensors in their place, and collect them."""
    if isinstance(value, Tensor):
        found.append(value)
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(one, function, found) for one in value)
    return value


class FakeGPU(TorchDispatchMode):
    """Runs operations on tensors of both devices."""

    def __init__(self):
        super().__init__()
        self.waits = []
        """What the processor waited for, in order."""
        self.pinned = []
        """Tensors of the CPU from and to which copies need not be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = []
        on_cpu = [_mapped(argument, _held, given) for argument in args]
        on_cpu_too = {name: _mapped(value, _held, given) for name, value in kwargs.items()}
        ours = {id(tensor.held): tensor for tensor in given if isinstance(tensor, GPUTensor)}
        here = isinstance(args[0], GPUTensor) if func is aten.copy_.default else bool(ours)
        if kwargs.get("device") is not None:
            here, on_cpu_too["device"] = kwargs["device"] == META, CPU
        if func in COPYING:
            self._note_copy(func, given, here, kwargs.get("non_blocking", False) or args[2:3])
        elif ours:
            self._check(func, args, kwargs, given)
        result = func(*on_cpu, **on_cpu_too)

        def placed(tensor):
            return ours[id(tensor)] if id(tensor) in ours else GPUTensor(tensor)

        return _mapped(result, placed, []) if here else result

    def _note_copy(self, func, given, here, sent):
        """Note a copy between the devices that is waited for."""
        source = given[-1]
        if isinstance(source, GPUTensor) == here:
            return
        other = source if here else given[0]  # the one on the CPU
        pinned = any(other is tensor for tensor in self.pinned)
        if here and not sent:
            self.waits.append("copy to the GPU")
        if not here and not (sent and pinned):
            self.waits.append("copy to the CPU")

    def _check(self, func, args, kwargs, given):
        """Note what is waited for, and raise a RuntimeError if devices are mixed."""
        if func in WAITING:
            self.waits.append(str(func))
        if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.waits.append(str(func))
        strange = [tensor for tensor in given if not isinstance(tensor, GPUTensor)]
        if func in INDEXING and isinstance(args[0], GPUTensor):
            indices = [index for index in args[1] if index is not None]
            self.waits += [str(func)] * sum(i.dtype == torch.bool for i in indices)
            self.waits += ["copy of an index to the GPU"] * sum(i.device == CPU for i in indices)
            strange = [tensor for tensor in strange if not any(tensor is i for i in indices)]
        written = args[0] if func._schema.is_mutable else None
        if torch.Tag.pointwise in func.tags:
            strange = [one for one in strange if one.dim() > 0 or one is written]
        if strange:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")


class _Names(TorchFunctionMode):
    """Lets torch's Python functions take the fake GPU for a device of which torch's C++ knows."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in MAKING:
            device = kwargs.pop("device", None)
            if func is Tensor.new_tensor:
                device = device or args[0].device
                func, args = torch.tensor, args[1:]
            made = func(*args, **kwargs)
            return made if device is None else made.to(_known(device))
        if func is Tensor.tolist and isinstance(args[0], GPUTensor):
            return args[0].cpu().tolist()
        if func is Tensor.pin_memory or kwargs.pop("pin_memory", False):
            made = args[0].clone() if func is Tensor.pin_memory else func(*args, **kwargs)
            self.gpu.pinned.append(made)
            return made
        if func is not torch.device:
            args = tuple(map(_known, args))
            kwargs = {name: _known(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _known(argument):
    """Return an argument, or the name of the fake GPU in C++."""
    named = isinstance(argument, str | torch.device)
    return META if named and str(argument) in ("cuda", "cuda:0") else argument


@contextmanager
def fake_gpu() -> Iterator[FakeGPU]:
    """Let there be a GPU for a while."""
    gpu = FakeGPU()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Names(gpu), gpu:
            yield gpu
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)

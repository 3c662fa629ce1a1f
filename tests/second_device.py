"""
A second device for machines that have none: tensors that compute on the CPU and behave as if they lived elsewhere.

Its name is ``"meta"``, torch's device of tensors without data, which autograd knows; within :func:`second_device` the tensors
made on it have data. Tensors of both devices do not mix, except where CUDA lets them: ``to`` and ``copy_``, indices, and
numbers (0-dim tensors of the CPU) in pointwise operations. There is no numpy array of a tensor on it, and no fused optimizer.

What it does not know: kernels that round in their own way; streams; the device of a cotangent, which autograd asks for plain
tensors only, so that a wrong one is refused by the first operation that mixes; random numbers of its own; tensors that
``new_tensor`` makes of lists, which have no data and are refused. Files do not remember it: what is saved there is loaded
where ``map_location`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = th.device("meta")

aten = th.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
TAKE_INDICES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Elsewhere(th.Tensor):
    """
    A tensor on the second device.

    :param on_cpu: its data, on the CPU
    """

    on_cpu: th.Tensor
    __torch_function__ = th._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, on_cpu: th.Tensor) -> Elsewhere:
        wrapper: Elsewhere = th.Tensor._make_wrapper_subclass(
            cls, on_cpu.shape, on_cpu.stride(), on_cpu.storage_offset(), dtype=on_cpu.dtype, device=DEVICE
        )
        wrapper.on_cpu = on_cpu
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} on the second device, outside of it")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.on_cpu.__reduce_ex__(protocol)


class SecondDevice(TorchDispatchMode):
    """
    Computes what lives on the second device, and refuses what a real one would.

    :param without_float64: whether float64 is refused there
    :ivar waits: how often the CPU has waited for a number or a tensor of the device
    """

    def __init__(self, without_float64: bool = False):
        super().__init__()
        self.without_float64 = without_float64
        self.waits = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # its wrapper around every operation takes longer than the operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
        goes_there = kwargs["device"].type == DEVICE.type if kwargs.get("device") is not None else there
        if not there and not goes_there:
            return func(*args, **kwargs)
        self._check(func, args, tensors)
        if goes_there and "device" in kwargs:
            kwargs["device"] = th.device("cpu")
        self.waits += func is aten._local_scalar_dense.default or (func in COPIES and not goes_there)
        result = func(*_each(_unwrapped, args), **{key: _each(_unwrapped, value) for key, value in kwargs.items()})
        if func._schema.is_mutable:
            assert result is None or isinstance(result, th.Tensor), f"{func} is not emulated"
            return None if result is None else kwargs.get("out", args[0])
        return _each(self._wrapped, result) if goes_there else result

    def _check(self, func: Any, args: Any, tensors: list[th.Tensor]) -> None:
        """:raises RuntimeError: if a device would not do this"""
        if "fused" in func.__name__:
            raise RuntimeError(f"{func} has no kernel on the second device")
        if func in TAKE_INDICES and isinstance(args[0], Elsewhere):
            tensors = [args[0], *(tensor for tensor in args[2:3] if tensor.dim() > 0)]
        for tensor in tensors:
            if isinstance(tensor, Elsewhere):
                continue
            if tensor.is_meta:
                raise RuntimeError(f"{func} of a tensor without data")
            written = func._schema.is_mutable and tensor is args[0]
            is_number = tensor.dim() == 0 and th.Tag.pointwise in func.tags and not written
            if func not in COPIES and not is_number:
                raise RuntimeError(
                    f"{func}: expected all tensors to be on the same device, but found the CPU and the second one"
                )

    def _wrapped(self, value: Any) -> Any:
        if not isinstance(value, th.Tensor):
            return value
        if self.without_float64 and value.dtype == th.float64:
            raise TypeError("the second device has no float64")
        return Elsewhere(value)


def _tensors(values: Iterable[Any]) -> Iterator[th.Tensor]:
    for value in values:
        if isinstance(value, th.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """:return: what the function makes of each value in lists and tuples"""
    return type(value)(_each(function, part) for part in value) if isinstance(value, (list, tuple)) else function(value)


def _unwrapped(value: Any) -> Any:
    return value.on_cpu if isinstance(value, Elsewhere) else value


def _made_on_the_cpu_first(make: Callable[..., th.Tensor]) -> Callable[..., th.Tensor]:
    """:return: ``th.tensor`` or ``th.as_tensor``, which would make tensors of lists without data"""

    def made(data: Any, *, device: Any = None, **kwargs: Any) -> th.Tensor:
        tensor = make(data, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


@contextmanager
def second_device(without_float64: bool = False) -> Iterator[SecondDevice]:
    """Within this context ``device="meta"`` is the second device."""
    load: Any = th.load
    generator = th.Generator  # random numbers are drawn on the CPU

    def load_there(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        if th.device(map_location or "cpu") != DEVICE:
            return load(*args, map_location=map_location, **kwargs)
        loaded = load(*args, map_location="cpu", **kwargs)
        return tree_map(lambda leaf: leaf.to(DEVICE) if isinstance(leaf, th.Tensor) else leaf, loaded)

    # Modules keep their parameters when they move, and with them their optimizers: elsewhere torch replaces the data in them.
    swaps = th.__future__.get_swap_module_params_on_conversion()
    th.__future__.set_swap_module_params_on_conversion(True)
    try:
        with SecondDevice(without_float64) as device, ExitStack() as stack:
            stack.enter_context(mock.patch.object(th, "load", load_there))
            stack.enter_context(mock.patch.object(th, "Generator", lambda device="cpu": generator()))
            for name in ("tensor", "as_tensor"):
                stack.enter_context(mock.patch.object(th, name, _made_on_the_cpu_first(getattr(th, name))))
            yield device
    finally:
        th.__future__.set_swap_module_params_on_conversion(swaps)

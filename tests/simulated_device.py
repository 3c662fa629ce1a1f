"""A second device without the hardware: tensors made on it compute on the CPU, but refuse what a GPU's would refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch as th
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "cuda:0"
Function = Callable[..., Any]


class ThereTensor(th.Tensor):
    """A tensor on the simulated device."""

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == th.Tensor.device.__get__:
            return th.device(DEVICE)
        if func in (th.Tensor.cpu, th.Tensor.numpy, th.Tensor.__array__):
            if func is not th.Tensor.cpu:
                raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu().")
            with th._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(th.Tensor).clone()
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, th.Tensor) and not isinstance(leaf, ThereTensor) and leaf.dim() > 0:
                raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu! ({func})")
        return super().__torch_function__(func, types, args, kwargs)


class _Simulation(TorchFunctionMode):
    """Whatever is asked to be on the device becomes a tensor there; a generator has to be there already."""

    generators: list[th.Generator]

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = any(isinstance(leaf, str | th.device) and str(leaf) == DEVICE for leaf in tree_leaves((args, kwargs)))
        generator = kwargs.get("generator")
        if generator is not None and there != any(known is generator for known in self.generators):
            raise RuntimeError("Expected a generator on the device of its tensors.")
        if not there:
            return func(*args, **kwargs)
        move = func is th.Tensor.to and not isinstance(args[0], ThereTensor)
        args, kwargs = tree_map(lambda leaf: "cpu" if str(leaf) == DEVICE else leaf, (args, kwargs))
        made = func(*args, **kwargs)
        return (made.clone() if move else made).as_subclass(ThereTensor)


@contextmanager
def simulated_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """:return: a context that gives the name of a device, which exists inside of it"""
    real = th.Generator
    simulation = _Simulation()
    simulation.generators = []

    def generator(device: str | th.device = "cpu") -> th.Generator:
        made = real()
        if str(device) == DEVICE:
            simulation.generators.append(made)
        return made

    with monkeypatch.context() as patch, simulation:
        patch.setattr(th, "Generator", generator)
        yield DEVICE

"""Optimizers that can be put back, and that leave out what is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn

Snapshot = tuple[list[th.Tensor], dict[th.Tensor, dict[str, Any]]]


def snapshot(parameters: list[nn.Parameter], optimizer: th.optim.Optimizer) -> Snapshot:
    """:return: copies of the parameters and of the optimizer's state, for :func:`restore`"""
    state = {parameter: _copy(values) for parameter, values in optimizer.state.items()}
    return [p.detach().clone() for p in parameters], state


def restore(parameters: list[nn.Parameter], optimizer: th.optim.Optimizer, before: Snapshot) -> None:
    """Put parameters and optimizer back to a :func:`snapshot`, which can be used again."""
    with th.no_grad():
        for parameter, old in zip(parameters, before[0]):
            parameter.copy_(old)
    optimizer.state.clear()
    optimizer.state.update({parameter: _copy(values) for parameter, values in before[1].items()})


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, th.Tensor) else value for key, value in values.items()}


@contextmanager
def leaving_out_nonfinite_steps(optimizer: th.optim.Optimizer) -> Iterator[None]:
    """
    Within this context the optimizer leaves out the steps whose gradients are not finite: with σ tiny a ratio of PPO
    overflows easily, and one such step would leave no numbers in the policy.

    :param optimizer: as it is otherwise
    """

    def leave_out(*_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not nn.utils.get_total_norm(gradients).isfinite():
            optimizer.zero_grad(set_to_none=True)

    handle = optimizer.register_step_pre_hook(leave_out)
    try:
        yield
    finally:
        handle.remove()

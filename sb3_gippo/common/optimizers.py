"""Optimizers that can be put back, that leave out what is not finite, and whose steps can be scaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn

Snapshot = tuple[list[th.Tensor], dict[th.Tensor, dict[str, Any]]]


def adam(parameters: list[nn.Parameter], **kwargs: Any) -> th.optim.Adam | None:
    """
    :param parameters: of one device
    :param kwargs: of torch's Adam
    :return: an Adam, the fused one where there is one; ``None`` if there is nothing to optimise
    """
    if not parameters:
        return None
    return th.optim.Adam(parameters, fused=parameters[0].device.type in ("cpu", "cuda"), **kwargs)


def load_state(optimizer: th.optim.Optimizer | None, state: dict[str, Any] | None) -> None:
    """
    Load an optimizer's state, which another device may have left: the kernels stay those of the device it is on now.

    :param optimizer: of :func:`adam`
    :param state: its ``state_dict``; where there is no optimizer, or no state, nothing is done
    """
    if optimizer is None or state is None:
        return
    groups = [{**group, "fused": own["fused"]} for group, own in zip(state["param_groups"], optimizer.param_groups)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def trainable(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """:return: those that are not frozen (``requires_grad``)"""
    return [parameter for parameter in parameters if parameter.requires_grad]


def copies(parameters: Sequence[nn.Parameter]) -> list[th.Tensor]:
    """:return: copies of their values"""
    return [parameter.detach().clone() for parameter in parameters]


@th.no_grad()
def put_back(parameters: Sequence[nn.Parameter], before: Sequence[th.Tensor]) -> None:
    """Put parameters back to their :func:`copies`."""
    for parameter, value in zip(parameters, before):
        parameter.copy_(value)


def snapshot(parameters: list[nn.Parameter], optimizer: th.optim.Optimizer) -> Snapshot:
    """:return: copies of the parameters and of the optimizer's state, for :func:`restore`"""
    state = {parameter: _copy(values) for parameter, values in optimizer.state.items()}
    return copies(parameters), state


def restore(parameters: list[nn.Parameter], optimizer: th.optim.Optimizer, before: Snapshot) -> None:
    """Put parameters and optimizer back to a :func:`snapshot`, which can be used again."""
    put_back(parameters, before[0])
    optimizer.state.clear()
    optimizer.state.update({parameter: _copy(values) for parameter, values in before[1].items()})


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, th.Tensor) else value for key, value in values.items()}


@contextmanager
def guarded_steps(
    optimizer: th.optim.Optimizer, scales: Sequence[tuple[Sequence[nn.Parameter], float]] = ()
) -> Iterator[None]:
    """
    Within this context the optimizer leaves out the steps whose gradients are not finite: with σ tiny a ratio of PPO
    overflows easily, and one such step would leave no numbers in the policy. Its other steps may be scaled.

    The optimizer stays as it is, whatever its class, groups and rates: steps are linear in the rate, so a step taken back in
    part is one of a smaller rate, and one that is prolonged one of a larger.

    :param optimizer: SB3's or the policy's own
    :param scales: parameters, and what their steps are multiplied by
    """
    scaled = [(trainable(parameters), scale) for parameters, scale in scales if scale != 1]
    before: list[list[th.Tensor]] = []

    def prepare(*_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not nn.utils.get_total_norm(gradients).isfinite():
            optimizer.zero_grad(set_to_none=True)
        before[:] = [copies(parameters) for parameters, _ in scaled]

    @th.no_grad()
    def rescale(*_: Any) -> None:
        for (parameters, scale), values in zip(scaled, before):
            for parameter, value in zip(parameters, values):
                parameter.copy_(value.lerp(parameter, scale))

    handles = [optimizer.register_step_pre_hook(prepare)]
    if scaled:
        handles.append(optimizer.register_step_post_hook(rescale))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

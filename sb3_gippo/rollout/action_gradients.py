"""From a window with step gradients to dÂ/da for every one of its actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_gippo.rollout.adjoint import Limit, action_gradients
from sb3_gippo.rollout.buffer import GradientRolloutBuffer

Gaussian = tuple[th.Tensor, th.Tensor]
"""mean and standard deviation, (n, action_dim) each"""


EXPLODED = 10.0
"""|σ g| in units of std(Â) from which on a gradient is held to have exploded"""


class Found(NamedTuple):
    """What there was in a window."""

    usable: bool
    """whether at least one row is finite"""
    statistics: dict[str, float]
    """of its rows, by the key they are logged under"""


def vjp(output: th.Tensor, leaf: th.Tensor, cotangent: th.Tensor) -> th.Tensor:
    """
    :param output: computed from ``leaf``, or not
    :param leaf: requires a gradient
    :param cotangent: as ``output``
    :return: the cotangent of ``leaf``; zeros if the output does not depend on it
    """
    if not output.requires_grad:
        return th.zeros_like(leaf)
    return th.autograd.grad(output, leaf, cotangent, allow_unused=True, materialize_grads=True)[0]


def as_leaf(observations: th.Tensor) -> th.Tensor:
    """:return: a copy that requires a gradient; integers become numbers that have one"""
    floating = observations if observations.is_floating_point() else observations.to(th.get_default_dtype())
    return floating.detach().clone().requires_grad_()


def value_gradients(values: Callable[[th.Tensor], th.Tensor], observations: th.Tensor) -> th.Tensor:
    """
    :param values: V, observations (n, ...) to (n, 1)
    :param observations: (n, ...)
    :return: ∇V, (n, k)
    """
    leaf = as_leaf(observations)
    with th.enable_grad():
        value = values(leaf)
        return vjp(value, leaf, th.ones_like(value)).reshape(len(leaf), -1)


def fill_action_gradients(
    buffer: GradientRolloutBuffer,
    gaussian: Callable[[th.Tensor], Gaussian],
    values: Callable[[th.Tensor], th.Tensor],
    gae_lambda: float,
    max_norm: float | None,
    limited: bool = False,
) -> Found:
    """
    Recover the noise of a window's actions, sweep it, and make the gradients safe: rows that are not finite become zeros.

    :param buffer: the window; its ``noise`` and ``action_gradients`` are written
    :param gaussian: the policy that acted, observations (n, ...) to mean and standard deviation
    :param values: V, observations (n, ...) to (n, 1)
    :param gae_lambda: λ of the advantage that is differentiated
    :param max_norm: longer rows are scaled down to it; ``None`` for no limit
    :param limited: whether gradients with |σ g| > :data:`EXPLODED` std(Â), which claim far more of one action's noise than all
        noise together does, are kept from exploding further, see :func:`~sb3_gippo.rollout.adjoint.action_gradients`
    :return: what there was
    """
    device, window = buffer.device, buffer.actions.shape[:2]

    def flat(array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array, device=device).reshape(-1, *array.shape[2:])

    with th.no_grad():
        mean, std = (part.detach().reshape(*window, -1) for part in gaussian(flat(buffer.observations)))

    def tensor(array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array).to(mean)

    noise = (tensor(buffer.actions) - mean) / std
    buffer.noise = noise.cpu().numpy()

    def policy_vjp(t: int, action_bar: th.Tensor) -> th.Tensor:
        leaf = as_leaf(buffer.to_torch(buffer.observations[t]))
        with th.enable_grad():
            mean, std = gaussian(leaf)
            return vjp(mean + std * noise[t], leaf, action_bar).reshape(len(leaf), -1).to(action_bar)

    limit = Limit(std, EXPLODED * float(buffer.advantages.std())) if limited else None
    gradients = action_gradients(
        buffer.step_gradients,
        tensor(buffer.action_scale),
        tensor(buffer.observation_scale),
        tensor(buffer.reward_scale),
        value_gradients(values, flat(buffer.next_observations)).reshape(*window, -1).to(mean),
        policy_vjp,
        th.as_tensor(buffer.bootstrap, device=device),
        th.as_tensor(buffer.continues, device=device),
        buffer.gamma,
        gae_lambda,
        limit,
    )
    norm = gradients.norm(dim=2, keepdim=True)
    # A norm that overflows is as useless as one of what is not finite.
    finite = norm.isfinite()
    gradients, norm = gradients.where(finite, 0.0), norm.where(finite, 0.0)
    if max_norm is not None:
        gradients = gradients * (max_norm / norm.clamp(min=1e-30)).clamp(max=1.0)
    buffer.action_gradients = gradients.cpu().numpy()
    statistics = {
        "train/action_grad_norm": norm.mean().item(),
        "train/action_grad_norm_max": norm.max().item(),
        "train/action_grad_variance": gradients.var(dim=(0, 1), unbiased=False).sum().item(),
        "train/nonfinite_grad_fraction": 1.0 - finite.float().mean().item(),
    }
    if limit is not None:
        exploded = (std * gradients).norm(dim=2) > limit.size
        statistics["train/exploded_grad_fraction"] = exploded.float().mean().item()
    return Found(bool(finite.any()), statistics)

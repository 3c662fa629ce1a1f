"""How the policy is moved towards the α-policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_gippo.gippo.policies import LOG_STD_MIN

MIN_LEARNING_RATE = 1e-5
"""the published fit's learning rate is not reduced below"""


def fit_loss(mean: th.Tensor, std: th.Tensor, noise: th.Tensor, target: th.Tensor, scale: th.Tensor) -> th.Tensor:
    """
    How far the policy's actions are from the α-policy's, in units of the sampling policy's σ:
    mean over samples of ‖(μ + σ ε - target) / scale‖².

    :param mean: μ (n, action_dim)
    :param std: σ (n, action_dim)
    :param noise: ε (n, action_dim)
    :param target: (n, action_dim)
    :param scale: σ̄ (n, action_dim), or 1
    :return: a scalar
    """
    return ((mean + std * noise - target) / scale).square().sum(1).mean()


class AdamFit:
    """
    The paper's solver: full-batch Adam steps; if the loss did not fall, restore the actor, lower the learning rate, try again.

    :param policy: its actor is fitted, with ``policy.alpha_optimizer``
    :param n_iterations: Adam steps
    :param max_grad_norm: gradient clipping
    """

    RETRIES = 8
    REDUCTION = 1.5

    def __init__(self, policy: ActorCriticPolicy, n_iterations: int, max_grad_norm: float):
        self.policy = policy
        self.optimizer: th.optim.Optimizer = policy.alpha_optimizer  # type: ignore[assignment]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.n_iterations = n_iterations
        self.max_grad_norm = max_grad_norm

    def fit(
        self,
        observations: th.Tensor,
        noise: th.Tensor,
        target: th.Tensor,
        scale: th.Tensor,
        learning_rate: float,
    ) -> tuple[float, float]:
        """
        Move the actor towards the target actions. It is never left worse than it was found.

        :param observations: (n, ...)
        :param noise: (n, action_dim)
        :param target: (n, action_dim), a + α·g
        :param scale: (n, action_dim), unit of the residual
        :param learning_rate: of the first attempt
        :return: final loss over initial loss (1 if every attempt failed), and the learning rate of the last attempt
        """

        def loss() -> th.Tensor:
            distribution: Any = self.policy.get_distribution(observations).distribution
            return fit_loss(distribution.mean, distribution.stddev, noise, target, scale)

        with th.no_grad():
            initial = loss().item()
        before = snapshot(self.parameters, self.optimizer)
        for _ in range(self.RETRIES):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            for _ in range(self.n_iterations):
                self.optimizer.zero_grad()
                loss().backward()
                nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
                self.optimizer.step()
            clamp_log_std(self.policy)
            with th.no_grad():
                final = loss().item()
            if final < initial:  # False for NaN
                self.optimizer.zero_grad()
                return final / initial, learning_rate
            restore(self.parameters, self.optimizer, before)
            learning_rate = max(learning_rate / self.REDUCTION, min(MIN_LEARNING_RATE, learning_rate))
        self.optimizer.zero_grad()
        return 1.0, learning_rate


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
        if not all(gradient.isfinite().all() for gradient in gradients):
            optimizer.zero_grad(set_to_none=True)

    handle = optimizer.register_step_pre_hook(leave_out)
    try:
        yield
    finally:
        handle.remove()


def clamp_log_std(policy: ActorCriticPolicy) -> None:
    """Keep a state-independent log σ above its floor."""
    if isinstance(getattr(policy, "log_std", None), nn.Parameter):
        with th.no_grad():
            policy.log_std.clamp_(min=LOG_STD_MIN)

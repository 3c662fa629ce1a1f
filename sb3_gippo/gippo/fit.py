"""How the policy is moved towards the α-policy."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_gippo.common.optimizers import restore, snapshot
from sb3_gippo.common.policies import LOG_STD_MIN

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


def clamp_log_std(policy: ActorCriticPolicy) -> None:
    """Keep a state-independent log σ above its floor."""
    if isinstance(getattr(policy, "log_std", None), nn.Parameter):
        with th.no_grad():
            policy.log_std.clamp_(min=LOG_STD_MIN)

"""How the policy is moved towards the α-policy."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

LOG_STD_MIN = math.log(1.2e-7)
"""the policy's log σ is kept above: below it float32 can no longer tell the actions apart"""
MIN_LEARNING_RATE = 1e-5
"""the published fit's learning rate is not reduced below"""


class ActorParameters(NamedTuple):
    """The parameters of the actor, none of which the value depends on."""

    mean: list[nn.Parameter]
    """what the mean depends on (and, with a state-dependent σ, perhaps σ too)"""
    std: list[nn.Parameter]
    """what only σ depends on"""


def actor_parameters(policy: ActorCriticPolicy) -> ActorParameters:
    """
    The parameters the action depends on and the value does not: shared features belong to the PPO step alone.

    :param policy: with a diagonal Gaussian distribution
    :return: in the policy's order
    """
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    # Two rows, not one: normalisation layers want a batch.
    observation = th.zeros(2, *policy.observation_space.shape, device=policy.device)  # type: ignore[misc]
    training = policy.training
    policy.set_training_mode(False)
    distribution: Any = policy.get_distribution(observation).distribution
    outputs = (distribution.mean.sum(), distribution.stddev.sum(), policy.predict_values(observation).sum())
    used = []
    for output in outputs:
        gradients = th.autograd.grad(output, parameters, allow_unused=True, retain_graph=True)
        used.append([gradient is not None for gradient in gradients])
    policy.set_training_mode(training)
    by_mean, by_std, by_value = used
    return ActorParameters(
        [p for p, mean, value in zip(parameters, by_mean, by_value) if mean and not value],
        [p for p, mean, std, value in zip(parameters, by_mean, by_std, by_value) if std and not mean and not value],
    )


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


Snapshot = tuple[list[th.Tensor], dict]


def snapshot(parameters: list[nn.Parameter], optimizer: th.optim.Optimizer) -> Snapshot:
    """:return: copies of the parameters and of the optimizer's state, for :func:`restore`"""
    return [p.detach().clone() for p in parameters], copy.deepcopy(optimizer.state_dict())


def restore(parameters: list[nn.Parameter], optimizer: th.optim.Optimizer, before: Snapshot) -> None:
    """Put parameters and optimizer back to a :func:`snapshot`, which can be used again."""
    with th.no_grad():
        for parameter, old in zip(parameters, before[0]):
            parameter.copy_(old)
    optimizer.load_state_dict(copy.deepcopy(before[1]))


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

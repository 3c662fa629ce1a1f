"""Which of a policy's parameters are the actor's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn


class ActorParameters(NamedTuple):
    """The parameters of the actor, none of which the value depends on."""

    mean: list[nn.Parameter]
    """what the mean depends on (and, with a state-dependent σ, σ too)"""
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

"""The actor inside an actor-critic policy: its Gaussian, and which parameters belong to what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_gippo.common.optimizers import trainable
from sb3_gippo.common.policies import LOG_STD_MAX, LOG_STD_MIN
from sb3_gippo.rollout.action_gradients import Gaussian


class Actor:
    """
    What the α-step, the critic's fit and the trust region need to know of a policy. Which parameters mean, σ and value depend
    on is found by a forward pass, whether they are frozen or not; what is frozen (``requires_grad=False``) is left alone.

    Parameters that both actor and value depend on (a shared features extractor) are moved by the PPO step only: neither the
    α-step nor the critic's fit may change the other's outputs.

    :param policy: with a diagonal Gaussian distribution
    :ivar mean: what the mean depends on, the value not (and, with a state-dependent σ, σ too)
    :ivar std: what only σ depends on
    :ivar critic: what only the value depends on
    :ivar moves_mean: all that a PPO step may move the mean by, shared parameters included
    :ivar moves_std: all that it may move σ alone by
    :ivar std_follows_mean: whether σ depends on parameters that the mean depends on
    """

    def __init__(self, policy: ActorCriticPolicy):
        self.policy = policy
        parameters = [parameter for parameter in policy.parameters() if parameter.is_floating_point()]
        by_mean, by_std, by_value = self._used(parameters)
        rows = list(zip(parameters, by_mean, by_std, by_value))
        self.moves_mean = [p for p, mean, _, _ in rows if mean]
        self.moves_std = [p for p, mean, std, _ in rows if std and not mean]
        self.mean = [p for p, mean, _, value in rows if mean and not value]
        self.std = [p for p, mean, std, value in rows if std and not mean and not value]
        self.critic = [p for p, mean, std, value in rows if value and not mean and not std]
        self.std_follows_mean = any(mean and std for _, mean, std, _ in rows)

    def _used(self, parameters: list[nn.Parameter]) -> list[list[bool]]:
        policy = self.policy
        # Two rows, not one: normalisation layers want a batch.
        observation = th.zeros(2, *policy.observation_space.shape, device=policy.device)  # type: ignore[misc]
        training, frozen = policy.training, [p for p in parameters if not p.requires_grad]
        policy.set_training_mode(False)
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            with th.enable_grad():
                outputs = (*self.gaussian(observation), policy.predict_values(observation))
            used = []
            for output in outputs:
                found: Any = [None] * len(parameters)
                if output.requires_grad:
                    found = th.autograd.grad(output.sum(), parameters, allow_unused=True, retain_graph=True)
                used.append([gradient is not None for gradient in found])
            return used
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            policy.set_training_mode(training)
            forget_graph(policy)

    def gaussian(self, observations: th.Tensor) -> Gaussian:
        """
        :param observations: (n, ...), as the policy sees them
        :return: mean and standard deviation of the action before clip or squash, (n, action_dim) each, finite or not
        """
        return gaussian(self.policy, observations)

    def gaussian_and_features(self, observations: th.Tensor) -> tuple[Gaussian, th.Tensor]:
        """
        :param observations: (n, ...)
        :return: the Gaussian, and what the mean's last linear layer receives for it (n, p); p = 0 for a policy without one
        """
        inputs: list[th.Tensor] = []
        layer: nn.Module | None = getattr(self.policy, "action_net", None)
        hook: Any = nullcontext()
        if layer is not None:
            hook = layer.register_forward_pre_hook(
                lambda _, args, kwargs: inputs.extend([*args, *kwargs.values()][:1]), with_kwargs=True
            )
        with hook, th.no_grad():
            found = self.gaussian(observations)
        return found, inputs[0].flatten(1) if inputs else found[0].new_zeros(len(found[0]), 0)

    @property
    def log_std(self) -> nn.Parameter | None:
        """:return: the parameter log σ, or the one that is added to a state-dependent log σ; ``None`` if none can be moved"""
        log_std = getattr(self.policy, "log_std", None)
        return log_std if any(log_std is parameter for parameter in trainable(self.std)) else None

    def keep_std_in_bounds(self) -> None:
        """
        Keep log σ above what float32 can resolve, and below where a state-dependent one is clamped, that it does not wind up.
        """
        if self.log_std is not None:
            highest = LOG_STD_MAX if getattr(self.policy, "state_dependent_std", False) else None
            with th.no_grad():
                self.log_std.clamp_(LOG_STD_MIN, highest)


def gaussian(policy: ActorCriticPolicy, observations: th.Tensor) -> Gaussian:
    """See :meth:`Actor.gaussian`."""
    with _unvalidated():
        distribution: Any = policy.get_distribution(observations).distribution
    return distribution.mean, distribution.stddev


def log_prob(actions: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """:return: (...), log density of a diagonal Gaussian at ``actions`` (..., action_dim)"""
    return th.distributions.Normal(mean, std, validate_args=False).log_prob(actions).sum(-1)


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Let torch's distributions take parameters that are not finite: what to do about them is decided here."""
    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(before)


def forget_graph(policy: ActorCriticPolicy) -> None:
    """Drop the distribution of a policy's last forward pass, whose graph can neither be copied nor pickled."""
    distribution: Any = policy.action_dist
    if getattr(distribution, "distribution", None) is not None:
        distribution.distribution = None

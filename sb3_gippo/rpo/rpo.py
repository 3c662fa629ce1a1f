"""RPO: the reparameterisation gradient of a window, used for several steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_gippo.common.hyperparameters import check_integer, check_number
from sb3_gippo.on_policy.actor import log_prob
from sb3_gippo.on_policy.policy_gradient import PolicyGradient, reparameterised
from sb3_gippo.rollout.action_gradients import Gaussian
from sb3_gippo.rollout.buffer import GradientBatch


def surrogate(
    batch: GradientBatch, old_log_prob: th.Tensor, policy: Gaussian, low: float, high: float
) -> tuple[th.Tensor, float]:
    """
    What RPO ascends. The window's action gradients stay as they are; the noise is that with which the present policy would
    have taken the sampled actions, so that they remain the place where the gradients were taken.

    :param batch: the window
    :param old_log_prob: log-probabilities (n,) of its actions when they were sampled
    :param policy: mean and standard deviation on it now, (n, action_dim) each, with a graph
    :param low: c_low
    :param high: c_high
    :return: w g·(μ + σ ε) (n,) with ε = (a - μ)/σ and w held fixed; w = π/π̄ within [1 - c_low, 1 + c_high] and 0 outside; and
        the share of rows that are outside
    """
    mean, std = policy
    with th.no_grad():
        ratio = (log_prob(batch.actions, *policy) - old_log_prob).exp()
        # As a clip of the ratio does: what is outside has no gradient.
        inside = (ratio >= 1 - low) & (ratio <= 1 + high)
        weight = ratio.where(inside, 0.0)
        noise = (batch.actions - mean) / std
    return weight * reparameterised(replace(batch, noise=noise), policy), 1 - inside.float().mean().item()


class RPO(PolicyGradient):
    """
    Reparameterization Proximal Policy Optimization (RPO)

    Paper: https://arxiv.org/abs/2508.06214

    The action gradients of a window are computed once and serve for ``n_epochs`` steps: the first is
    :class:`~sb3_gippo.rp.RP`'s, the later ones weigh them by importance ratios, within bounds, and a KL divergence holds them
    near the policy that sampled. It has one critic where the paper has two.

    Where the environments offer no gradients there is nothing to learn from, and it refuses to train.

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate of the actor's Adam, it can be a function of the current progress remaining
    :param n_steps: The number of steps to run for each environment per update, the window the gradients flow through
    :param n_epochs: Steps of the actor per update, each on the whole window
    :param gamma: Discount factor
    :param gae_lambda: λ of the returns the critic is fitted to
    :param clip_low: c_low, samples whose ratio to the policy that sampled is below 1 - c_low are left out
    :param clip_high: c_high, samples whose ratio is above 1 + c_high are left out
    :param kl_coef: Coefficient of the KL divergence of the policy that sampled from the present one
    :param ent_coef: Entropy coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param action_gradient_lambda: λ of the return whose gradient is used; ``None`` for ``gae_lambda``
    :param critic_epochs: Passes over the last windows that fit the critic after each update
    :param critic_kwargs: Settings of this fit that differ from their defaults, see
        :class:`~sb3_gippo.on_policy.critic.CriticSettings`
    :param target_critic_tau: Returns and their gradients take their values from a copy of the critic that follows it by this
        share after every update; ``None`` for the critic itself
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 32,
        n_epochs: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_low: float = 0.8,
        clip_high: float = 1.0,
        kl_coef: float = 0.2,
        ent_coef: float = 0.0,
        max_grad_norm: float = 1.0,
        action_gradient_lambda: float | None = 1.0,
        critic_epochs: int = 4,
        critic_kwargs: dict[str, Any] | None = None,
        target_critic_tau: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            max_grad_norm=max_grad_norm,
            action_gradient_lambda=action_gradient_lambda,
            critic_epochs=critic_epochs,
            critic_kwargs=critic_kwargs,
            target_critic_tau=target_critic_tau,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.n_epochs = n_epochs
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.kl_coef = kl_coef
        self.ent_coef = ent_coef
        if _init_setup_model:
            self._setup_model()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        check_integer("n_epochs", self.n_epochs, 1)
        check_number("clip_low", self.clip_low, 0, 1)
        check_number("clip_high", self.clip_high)
        check_number("kl_coef", self.kl_coef)
        check_number("ent_coef", self.ent_coef)

    def _improve_actor(self, batch: GradientBatch) -> None:
        assert self.actor is not None
        if not self._has_gradients:
            return
        normal = lambda mean, std: th.distributions.Normal(mean, std, validate_args=False)  # noqa: E731
        self.policy.set_training_mode(False)
        with th.no_grad():
            sampled = normal(*self.actor.gaussian(batch.observations))
            old_log_prob = sampled.log_prob(batch.actions).sum(1)
        self.policy.set_training_mode(True)
        for _ in range(self.n_epochs):
            policy = self.actor.gaussian(batch.observations)
            gain, left_out = surrogate(batch, old_log_prob, policy, self.clip_low, self.clip_high)
            kl = th.distributions.kl_divergence(sampled, normal(*policy)).sum(1)
            entropy = normal(*policy).entropy().sum(1)
            self._actor_step((gain - self.kl_coef * kl + self.ent_coef * entropy).mean())
        self.logger.record("train/approx_kl", kl.mean().item())
        self.logger.record("train/clip_fraction", left_out)

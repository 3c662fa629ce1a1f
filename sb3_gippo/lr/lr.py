"""LR: the likelihood-ratio gradient of a window's return."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_gippo.on_policy.policy_gradient import PolicyGradient, likelihood_ratio
from sb3_gippo.rollout.buffer import GradientBatch


class LR(PolicyGradient):
    """
    Policy gradient by likelihood ratios: one step per window along the mean of Â ∇log π(a|o), with SB3's generalised
    advantages Â. The baseline "LR" of the GI-PPO paper: optimizer, critic and window are :class:`~sb3_gippo.rp.RP`'s, only the
    estimate of the gradient is another.

    It asks its environments for no gradients, and needs none.

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate of the actor's Adam, it can be a function of the current progress remaining
    :param n_steps: The number of steps to run for each environment per update
    :param gamma: Discount factor
    :param gae_lambda: λ of the advantages, and of the returns the critic is fitted to
    :param normalize_advantage: Whether to normalize or not the advantage
    :param max_grad_norm: The maximum value for the gradient clipping
    :param critic_epochs: Passes over the last windows that fit the critic after each update
    :param critic_kwargs: Settings of this fit that differ from their defaults, see
        :class:`~sb3_gippo.on_policy.critic.CriticSettings`
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for a policy that is no diagonal Gaussian of one array, see SB3's A2C for those
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 32,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        normalize_advantage: bool = True,
        max_grad_norm: float = 1.0,
        critic_epochs: int = 4,
        critic_kwargs: dict[str, Any] | None = None,
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
            critic_epochs=critic_epochs,
            critic_kwargs=critic_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.normalize_advantage = normalize_advantage
        if _init_setup_model:
            self._setup_model()

    def _wants_gradients(self) -> bool:
        return False

    def _has_learner(self) -> bool:
        return True

    def _setup_model(self) -> None:
        super()._setup_model()
        reason = self._unsupported()
        if reason is not None:
            raise ValueError(f"LR is for continuous actions of a diagonal Gaussian, and {reason}: take SB3's A2C.")

    def train(self) -> None:
        """Improve the actor on the window, then make the critic's fit."""
        if self.actor is None:
            self._setup_learner()
        super().train()

    def _improve_actor(self, batch: GradientBatch) -> None:
        assert self.actor is not None
        advantages = batch.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        self._actor_step(likelihood_ratio(batch, advantages, self.actor.gaussian(batch.observations)).mean())

"""What the policy-gradient baselines share: an optimizer of the actor's own, its step, and two estimators of a gradient."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_gippo.common.optimizers import adam, load_state, trainable
from sb3_gippo.on_policy.actor import log_prob
from sb3_gippo.on_policy.gradient_ppo import GradientPPO
from sb3_gippo.rollout.action_gradients import Gaussian
from sb3_gippo.rollout.buffer import GradientBatch, GradientRolloutBuffer


def likelihood_ratio(batch: GradientBatch, advantages: th.Tensor, policy: Gaussian) -> th.Tensor:
    """
    :param batch: the window
    :param advantages: Â (n,), less any baseline that does not depend on a row's own action
    :param policy: mean and standard deviation on it, (n, action_dim) each, with a graph
    :return: Â log π(a|o) (n,), whose gradient is the likelihood-ratio estimate, row by row
    """
    return advantages * log_prob(batch.actions, *policy)


def reparameterised(batch: GradientBatch, policy: Gaussian) -> th.Tensor:
    """
    :param batch: the window
    :param policy: mean and standard deviation on it, (n, action_dim) each, with a graph
    :return: g·(μ + σ ε) (n,), whose gradient is the reparameterisation estimate, row by row
    """
    mean, std = policy
    return (batch.action_gradients * (mean + std * batch.noise)).sum(1)


class PolicyGradient(GradientPPO):
    """
    An actor that follows an estimate of the gradient of a window's return by steps of an Adam of its own, and a critic that is
    fitted after it. Subclasses make the estimate, in ``_improve_actor``.

    Its arguments are those of :class:`~sb3_gippo.rp.RP`. Where the environments offer no gradients it refuses to train.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 32,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        max_grad_norm: float = 1.0,
        action_gradient_lambda: float | None = 1.0,
        max_action_grad_norm: float | None = None,
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
            batch_size=n_steps,  # PPO's, of no use here
            gamma=gamma,
            gae_lambda=gae_lambda,
            normalize_advantage=False,
            max_grad_norm=max_grad_norm,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.action_gradient_lambda = action_gradient_lambda
        self.max_action_grad_norm = max_action_grad_norm
        self.critic_epochs = critic_epochs
        self.critic_kwargs = critic_kwargs
        self.target_critic_tau = target_critic_tau
        self.actor_optimizer: th.optim.Optimizer | None = None
        """none before the first window"""
        if _init_setup_model:
            self._setup_model()

    def _wants_gradients(self) -> bool:
        return True

    def _setup_model(self) -> None:
        super()._setup_model()
        self.actor_optimizer = None

    def _setup_learner(self) -> None:
        super()._setup_learner()
        assert self.actor is not None
        # The paper's moments, for every optimizer that is not PPO's.
        self.actor_optimizer = adam([*self.actor.mean, *self.actor.std], betas=(0.7, 0.95))

    def _learner_state(self, with_critic_fit: bool) -> dict[str, Any]:
        optimizer = None if self.actor_optimizer is None else self.actor_optimizer.state_dict()
        return {**super()._learner_state(with_critic_fit), "actor_optimizer": optimizer}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        super()._load_learner_state(state)
        load_state(self.actor_optimizer, state.get("actor_optimizer"))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor_optimizer"]

    def _warn_plain_ppo(self, reason: str) -> None:
        name = type(self).__name__
        raise ValueError(f"{name} learns from the gradients of its environments only, and here there are none: {reason}.")

    def train(self) -> None:
        """Improve the actor on the window, then make the critic's fit."""
        assert isinstance(self.rollout_buffer, GradientRolloutBuffer) and self.actor is not None
        self._log_gradients()
        batch = self.rollout_buffer.gradient_batch()
        if self.actor_optimizer is not None and trainable([*self.actor.mean, *self.actor.std]):
            self._update_learning_rate(self.actor_optimizer)
            self.policy.set_training_mode(True)
            self._improve_actor(batch)
        self._fit_critic(batch)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _improve_actor(self, batch: GradientBatch) -> None:
        """
        Make one or more of :meth:`_actor_step`.

        :param batch: the window; its action gradients are all zero if none of them was finite
        """
        raise NotImplementedError

    def _actor_step(self, objective: th.Tensor) -> None:
        """
        A step of the actor's optimizer; one whose gradient is not finite is left out.

        :param objective: what is to rise, a scalar with a graph
        """
        assert self.actor is not None and self.actor_optimizer is not None
        self.actor_optimizer.zero_grad()
        (-objective).backward()
        norm = th.nn.utils.clip_grad_norm_([*self.actor.mean, *self.actor.std], self.max_grad_norm)
        if norm.isfinite():
            self.actor_optimizer.step()
        self.actor.keep_std_in_bounds()

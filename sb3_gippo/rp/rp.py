"""RP: the reparameterisation gradient of a window's return, as in SHAC."""

from __future__ import annotations

from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_gippo.common.optimizers import adam, load_state, trainable
from sb3_gippo.on_policy.gradient_ppo import GradientPPO
from sb3_gippo.rollout.buffer import GradientRolloutBuffer

SelfRP = TypeVar("SelfRP", bound="RP")


class RP(GradientPPO):
    """
    Policy gradient by reparameterisation: one step per window along the analytic gradient of its return, closed by the
    critic's value, with the policy in the loop. The baseline "RP" of the GI-PPO paper, after SHAC
    (https://arxiv.org/abs/2204.07137); every step of the window has the same weight.

    Where the environments offer no gradients there is nothing to learn from, and it refuses to train.

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate of the actor's Adam, it can be a function of the current progress remaining
    :param n_steps: The number of steps to run for each environment per update, the window the gradients flow through
    :param gamma: Discount factor
    :param gae_lambda: λ of the returns the critic is fitted to
    :param max_grad_norm: The maximum value for the gradient clipping
    :param action_gradient_lambda: λ of the return whose gradient is used
    :param max_action_grad_norm: Longer rows of the action gradient are scaled down to this norm; ``None`` for no limit
    :param critic_steps: Minibatch steps that fit the critic after each update
    :param critic_kwargs: Settings of these steps that differ from their defaults, see
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
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        max_grad_norm: float = 1.0,
        action_gradient_lambda: float = 1.0,
        max_action_grad_norm: float | None = None,
        critic_steps: int = 64,
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
        self.critic_steps = critic_steps
        self.critic_kwargs = critic_kwargs
        self.target_critic_tau = target_critic_tau
        self.actor_optimizer: th.optim.Optimizer | None = None
        """none before the first gradients"""
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
        raise ValueError(f"RP learns from the gradients of its environments only, and here there are none: {reason}.")

    def train(self) -> None:
        """One step of the actor along the mean over samples of g·(μ + σ ε), then the critic's fit."""
        assert isinstance(self.rollout_buffer, GradientRolloutBuffer) and self.actor is not None
        self._log_gradients()
        batch = self.rollout_buffer.gradient_batch()
        parameters = [*self.actor.mean, *self.actor.std]
        optimizer = self.actor_optimizer
        if self._has_gradients and optimizer is not None and trainable(parameters):
            self._update_learning_rate(optimizer)
            self.policy.set_training_mode(True)
            mean, std = self.actor.gaussian(batch.observations)
            loss = -(batch.action_gradients * (mean + std * batch.noise)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            if norm.isfinite():
                optimizer.step()
            self.actor.keep_std_in_bounds()
        self._fit_critic(batch)
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def learn(
        self: SelfRP,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "RP",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRP:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

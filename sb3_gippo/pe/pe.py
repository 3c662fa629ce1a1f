"""PE: PPO on a window that action gradients have enriched by neighbours of its samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_gippo.common.hyperparameters import check_integer, check_number
from sb3_gippo.common.optimizers import guarded_steps
from sb3_gippo.on_policy.actor import Actor, log_prob
from sb3_gippo.on_policy.gradient_ppo import GradientPPO
from sb3_gippo.rollout.action_gradients import Gaussian
from sb3_gippo.rollout.buffer import GradientRolloutBuffer


def neighbours(
    buffer: GradientRolloutBuffer, policy: Gaussian, radius: float, noise: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    A neighbour of each sample of a window: a' = μ + σ ε' with ε' = √(1 - radius²) ε + radius ξ, which is a sample of the same
    policy again, and its advantage to first order, Â + g·(a' - a).

    :param buffer: the window, with action gradients
    :param policy: mean and standard deviation that it was sampled from, (n_steps, n_envs, action_dim) each
    :param radius: between 0 (the sample itself) and 1 (one that has nothing to do with it)
    :param noise: ξ, standard normal, as the mean
    :return: actions (n_steps, n_envs, action_dim), their advantages and log-probabilities (n_steps, n_envs)
    """
    mean, std = policy
    to = lambda array: th.as_tensor(array).to(mean)  # noqa: E731
    own = to(buffer.noise)
    actions = mean + std * ((1 - radius**2) ** 0.5 * own + radius * noise)
    advantages = to(buffer.advantages) + (to(buffer.action_gradients) * (actions - to(buffer.actions))).sum(2)
    return actions, advantages, log_prob(actions, mean, std)


class PE(GradientPPO):
    """
    PPO on an enriched window: beside each sampled action stand neighbours of it, whose advantages follow from its own and the
    action gradient to first order. The baseline "PE" (policy enhancement) of the GI-PPO paper, after
    https://arxiv.org/abs/2109.07719; the neighbours of an action are samples of the same policy.

    Without gradients, or with ``radius=0``, this is SB3's :class:`~stable_baselines3.PPO`, bit for bit.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update, the window the gradients flow through
    :param batch_size: Minibatch size, in rows of the enriched window
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0).
    :param clip_range_vf: Clipping parameter for the value function, ``None`` for no clipping
    :param normalize_advantage: Whether to normalize or not the advantage
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE); it cannot be used with gradients
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
    :param rollout_buffer_class: Rollout buffer class to use, a subclass of
        :class:`~sb3_gippo.rollout.buffer.GradientRolloutBuffer`. If ``None``, it will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
    :param radius: How far the neighbours are from their samples: their noise is √(1 - radius²) of the sample's and ``radius``
        of a new one; 0 for plain PPO, at most 1
    :param n_neighbours: Neighbours of each sample
    :param action_gradient_lambda: λ of the advantage whose gradient is used; ``None`` for ``gae_lambda``
    :param critic_epochs: Passes over the last windows that fit the critic after each PPO update, in the place of PPO's value
        loss (beside it where actor and critic share features); 0 for the value loss alone. Windows without gradients are PPO's
    :param critic_kwargs: Settings of this fit that differ from their defaults, see
        :class:`~sb3_gippo.on_policy.critic.CriticSettings`
    :param target_critic_tau: Advantages and their gradients take their values from a copy of the critic that follows it by
        this share after every update; ``None`` for the critic itself
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    switched_off_by = "radius=0"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        radius: float = 0.5,
        n_neighbours: int = 1,
        action_gradient_lambda: float | None = None,
        critic_epochs: int = 4,
        critic_kwargs: dict[str, Any] | None = None,
        target_critic_tau: float | None = None,
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.radius = radius
        self.n_neighbours = n_neighbours
        self.action_gradient_lambda = action_gradient_lambda
        self.critic_epochs = critic_epochs
        self.critic_kwargs = critic_kwargs
        self.target_critic_tau = target_critic_tau
        if _init_setup_model:
            self._setup_model()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        check_number("radius", self.radius, 0, 1)
        check_integer("n_neighbours", self.n_neighbours, 1)

    def _wants_gradients(self) -> bool:
        return self.radius > 0

    def train(self) -> None:
        """PPO's update on the enriched window; of a window without usable gradients on the window as it is."""
        if not self._has_channel:
            super().train()
            return
        self._log_gradients()
        window = self.rollout_buffer
        assert isinstance(window, GradientRolloutBuffer) and self.actor is not None
        batch = window.gradient_batch()
        try:
            if self._has_gradients:
                self.rollout_buffer = self._enriched(self.actor, window)
            with guarded_steps(self.policy.optimizer):
                self._train_ppo()
        finally:
            self.rollout_buffer = window
        self.actor.keep_std_in_bounds()
        self._fit_critic(batch)

    def _enriched(self, actor: Actor, window: GradientRolloutBuffer) -> RolloutBuffer:
        """:return: a window of more environments: the neighbours are those of copies"""
        copies = self.n_neighbours + 1
        enriched = RolloutBuffer(
            window.buffer_size,
            window.observation_space,
            window.action_space,
            window.device,
            n_envs=copies * window.n_envs,
        )
        for name in ("observations", "returns", "values"):
            array = getattr(window, name)
            setattr(enriched, name, np.concatenate([array] * copies, axis=1))
        with th.no_grad():
            flat = window.to_torch(window.observations).flatten(0, 1)
            mean, std = (part.unflatten(0, window.noise.shape[:2]) for part in actor.gaussian(flat))
            found = [neighbours(window, (mean, std), self.radius, th.randn_like(mean)) for _ in range(self.n_neighbours)]
        for name, new in zip(("actions", "advantages", "log_probs"), zip(*found)):
            arrays = [getattr(window, name), *(tensor.cpu().numpy() for tensor in new)]
            setattr(enriched, name, np.concatenate(arrays, axis=1))
        enriched.full = True
        return enriched

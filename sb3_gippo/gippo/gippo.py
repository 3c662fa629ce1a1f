"""GI-PPO: PPO informed by the analytic gradients of its environment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch import nn

from sb3_gippo.common.hyperparameters import check_number, settings_from
from sb3_gippo.common.optimizers import copies, guarded_steps
from sb3_gippo.gippo.alpha_step import AlphaStep, Diagnostics, Made, Spent, diagnose
from sb3_gippo.gippo.distance import distance_from
from sb3_gippo.gippo.published import PublishedStep
from sb3_gippo.gippo.signal import Signal, read_signal
from sb3_gippo.gippo.trust_region import TrustRegionStep
from sb3_gippo.on_policy.actor import log_prob
from sb3_gippo.on_policy.gradient_ppo import GradientPPO
from sb3_gippo.rollout.action_gradients import Gaussian
from sb3_gippo.rollout.buffer import GradientBatch, GradientRolloutBuffer

ALPHA_SOLVERS: dict[str, type[AlphaStep]] = {"trust_region": TrustRegionStep, "published": PublishedStep}
"""the ways to make the α-step, by name"""

SelfGIPPO = TypeVar("SelfGIPPO", bound="GIPPO")


class GIPPO(GradientPPO):
    """
    Gradient Informed Proximal Policy Optimization (GI-PPO).

    Paper: https://arxiv.org/abs/2312.08710 (NeurIPS 2023)

    Before PPO's update, the policy is moved towards the α-policy, ``a + α · dÂ/da`` for every sampled action ``a``; PPO then
    works against the virtual policy π_h, the mean of sampling policy and the α-policy. α is raised while the gradients agree
    with the advantages and lowered while they do not (``alpha_solver="published"``: raised while the α-policy stays a valid
    density near the batch, and lowered when the gradients prove biased or lead too far away).

    The environments hand over their derivatives in ``info["grad"]``; they are asked to by ``set_differentiable`` from the
    beginning of ``learn`` to its end. Without them, or with ``alpha=0``, this is SB3's
    :class:`~stable_baselines3.PPO`, bit for bit.
    If actor and critic share features, the shared part is trained by the PPO step only.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate of the PPO step, it can be a function
        of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update, the window the gradients flow through
    :param batch_size: Minibatch size of the PPO step
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0).
    :param clip_range_vf: Clipping parameter for the value function, ``None`` for no clipping
    :param normalize_advantage: Whether to normalize or not the advantage
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping, in the PPO step and in the α-step
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
    :param alpha: Initial α; 0 for plain PPO. With the trust region, length of the α-step as a share of the region's radius;
        with the published solver, what the gradient is multiplied by (the paper starts between 1e-5 and 0.5)
    :param alpha_solver: How the α-policy is fitted and α controlled: ``"trust_region"``, in KL budgets and by the agreement
        of gradients and advantages, or ``"published"``, as in the paper
    :param alpha_kwargs: Settings of the solver that differ from its defaults, see
        :class:`~sb3_gippo.gippo.trust_region.TrustRegionSettings` and
        :class:`~sb3_gippo.gippo.published.PublishedSettings`
    :param action_gradient_lambda: λ of the advantage whose gradient is used; ``None`` for ``gae_lambda``
    :param critic_epochs: Passes over the last windows that fit the critic after each PPO update, in the place of PPO's value
        loss (beside it where actor and critic share features); 0 for the value loss alone. In windows without
        gradients PPO's loss has its ``vf_coef``
    :param critic_kwargs: Settings of this fit that differ from their defaults, see
        :class:`~sb3_gippo.on_policy.critic.CriticSettings`
    :param target_critic_tau: Advantages and their gradients take their values from a copy of the critic that follows it by
        this share after every update; ``None`` for the critic itself
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

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
        alpha: float = 0.3,
        alpha_solver: str = "trust_region",
        alpha_kwargs: dict[str, Any] | None = None,
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
        self.alpha = alpha
        self.alpha_solver = alpha_solver
        self.alpha_kwargs = alpha_kwargs
        self.action_gradient_lambda = action_gradient_lambda
        self.critic_epochs = critic_epochs
        self.critic_kwargs = critic_kwargs
        self.target_critic_tau = target_critic_tau
        self.alpha_step: AlphaStep | None = None
        """none before the first gradients"""

        if _init_setup_model:
            self._setup_model()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        check_number("alpha", self.alpha)
        if self.alpha_solver == "adam":
            warnings.warn('`alpha_solver="adam"` is now called "published".', FutureWarning, stacklevel=3)
            self.alpha_solver = "published"
        assert self.alpha_solver in ALPHA_SOLVERS, (
            f"`alpha_solver` must be one of {', '.join(ALPHA_SOLVERS)}, not {self.alpha_solver!r}"
        )
        settings: Any = settings_from(ALPHA_SOLVERS[self.alpha_solver].Settings, "alpha_kwargs", self.alpha_kwargs)
        assert settings.max_alpha >= self.alpha, (
            f"`max_alpha` ({settings.max_alpha}) must not be less than `alpha` ({self.alpha})"
        )
        self._alpha_settings = settings

    def _setup_model(self) -> None:
        super()._setup_model()
        self.alpha_step = None

    def _setup_learner(self) -> None:
        super()._setup_learner()
        assert self.actor is not None
        self.alpha_step = ALPHA_SOLVERS[self.alpha_solver](self.actor, self.alpha, self._alpha_settings, self.max_grad_norm)

    def _learner_state(self, with_critic_fit: bool) -> dict[str, Any]:
        assert self.alpha_step is not None
        state = super()._learner_state(with_critic_fit)
        return {**state, "alpha_solver": self.alpha_solver, "alpha_step": self.alpha_step.state_dict()}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        super()._load_learner_state(state)
        assert self.alpha_step is not None
        if state.get("alpha_solver") == self.alpha_solver:
            self.alpha_step.load_state_dict(state["alpha_step"])

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "alpha_step", "_alpha_settings"]

    def _wants_gradients(self) -> bool:
        return self.alpha > 0

    def _limits_gradients(self) -> bool:
        return ALPHA_SOLVERS[self.alpha_solver].limits_gradients

    def train(self) -> None:
        """Move the policy towards the α-policy, then make PPO's update against the virtual policy."""
        if not self._has_channel:
            super().train()
            return
        assert isinstance(self.rollout_buffer, GradientRolloutBuffer) and self.actor is not None
        self._log_gradients()
        batch = self.rollout_buffer.gradient_batch()
        if not self._has_gradients:
            self._train_without(batch)
            return
        self.policy.set_training_mode(False)
        old, features = self.actor.gaussian_and_features(batch.observations)
        start, spent = self._make_alpha_step(batch, old, features)
        self._ppo_step(batch, start, spent)
        self._fit_critic(batch)

    def _train_without(self, batch: GradientBatch) -> None:
        """After a window in which no gradient was usable: PPO's update, steps that are not finite left out."""
        assert self.alpha_step is not None
        self.logger.record("train/alpha", self.alpha_step.alpha)
        self.logger.record("train/alpha_decision", self.alpha_step.no_gradients())
        with guarded_steps(self.policy.optimizer):
            super().train()
        if self.vf_coef == 0:
            self._fit_critic(batch)
        elif self.target_critic is not None:
            self.target_critic.follow()

    def _make_alpha_step(self, batch: GradientBatch, old: Gaussian, features: th.Tensor) -> tuple[Gaussian, Spent]:
        """
        Fit the α-policy, judge it, move α, and put log π_h where PPO looks for the old policy's log-probabilities.

        :return: the policy as it is then, on the batch, and the shares of the KL budgets that are spent
        """
        step, buffer = self.alpha_step, self.rollout_buffer
        assert step is not None and self.actor is not None
        alpha, remaining = step.alpha, self._current_progress_remaining
        signal = read_signal(features, batch.noise, old[1] * batch.action_gradients, batch.advantages)
        made = step.make(batch, old, signal, remaining)
        diagnostics, new = None, old
        if made.loss_ratio is not None:
            with th.no_grad():
                new = self.actor.gaussian(batch.observations)
            log_probs = log_prob(batch.actions, *old), log_prob(batch.actions, *new)
            clip_range: Any = self.clip_range
            diagnostics = diagnose(batch.advantages, signal, log_probs, (old[1], new[1]), clip_range(remaining))
            n_steps, n_envs = buffer.log_probs.shape
            # gradient_batch has the environments first.
            virtual = step.virtual_log_prob(*log_probs).reshape(n_envs, n_steps).T
            buffer.log_probs = virtual.cpu().numpy().astype(np.float32)
        decision = step.controller.update(diagnostics)
        self._log_alpha_step(alpha, signal, made, decision, diagnostics)
        return new, made.spent

    def _ppo_step(self, batch: GradientBatch, start: Gaussian, spent: Spent) -> None:
        """PPO's update, held within what the α-step left; minibatches whose gradient is not finite are left out."""
        step, actor = self.alpha_step, self.actor
        assert step is not None and actor is not None
        before = [copies(actor.moves_mean), copies(actor.moves_std)]
        start_log_prob = log_prob(batch.actions, *start)

        def train(scales: Sequence[tuple[Sequence[nn.Parameter], float]], losses: list[float] | None) -> None:
            with guarded_steps(self.policy.optimizer, scales), distance_from(self, start_log_prob, losses):
                self._train_ppo()
            for name, (_, scale) in zip(("mean", "std"), scales):
                self.logger.record(f"train/learning_rate_{name}", scale * self.policy.optimizer.param_groups[0]["lr"])

        step.make_ppo_step(train, batch, before)
        self.policy.set_training_mode(False)
        step.bound_ppo_step(batch, start, before, spent, self._current_progress_remaining)
        actor.keep_std_in_bounds()
        for key, value in step.log.items():
            self.logger.record(key, value)

    def _log_alpha_step(
        self, alpha: float, signal: Signal, made: Made, decision: str, diagnostics: Diagnostics | None
    ) -> None:
        self.logger.record("train/alpha", alpha)
        self.logger.record("train/gradient_agreement", signal.agreement)
        self.logger.record("train/gradient_trust_mean", signal.mean_trust)
        self.logger.record("train/gradient_trust_std", signal.std_trust)
        self.logger.record("train/alpha_loss_ratio", 1.0 if made.loss_ratio is None else made.loss_ratio)
        self.logger.record("train/alpha_spent", made.spent.mean)
        self.logger.record("train/alpha_decision", decision)
        if diagnostics is not None:
            self.logger.record("train/std_ratio_min", diagnostics.std_ratio_min)
            self.logger.record("train/std_ratio_mean", diagnostics.std_ratio_mean)
            self.logger.record("train/std_ratio_max", diagnostics.std_ratio_max)
            self.logger.record("train/alpha_improvement", diagnostics.improvement)
            self.logger.record("train/alpha_improvement_z", diagnostics.improvement_z)
            self.logger.record("train/out_of_range_ratio", diagnostics.out_of_range_ratio)

    def learn(
        self: SelfGIPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GIPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfGIPPO:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

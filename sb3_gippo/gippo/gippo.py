"""GI-PPO: PPO informed by the analytic gradients of its environment."""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_gippo.common.buffers import GradientRolloutBuffer
from sb3_gippo.common.on_policy import GradientPPO
from sb3_gippo.gippo.alpha import (
    AdamFit,
    AlphaController,
    AlphaSettings,
    actor_parameters,
    diagnose,
    log_prob,
    restore,
    snapshot,
    virtual_log_prob,
)
from sb3_gippo.gippo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

SelfGIPPO = TypeVar("SelfGIPPO", bound="GIPPO")


class GIPPO(GradientPPO):
    """
    Gradient Informed Proximal Policy Optimization (GI-PPO).

    Paper: https://arxiv.org/abs/2312.08710 (NeurIPS 2023)

    Before PPO's update, the policy is moved towards the α-policy, ``a + α · dÂ/da`` for every sampled action ``a``; PPO then
    works against the virtual policy π_h, the mean of sampling policy and the α-policy. α is raised while the α-policy stays
    a valid density near the batch, and lowered when the gradients prove biased or lead too far away.

    The environments hand over their derivatives in ``info["grad"]``; they are asked to by ``set_differentiable(True)`` when
    training begins. Without them, or with ``alpha=0``, this is SB3's :class:`~stable_baselines3.PPO`, bit for bit.
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
        :class:`~sb3_gippo.common.buffers.GradientRolloutBuffer`. If ``None``, it will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
    :param alpha: Initial α; 0 for plain PPO
    :param alpha_interval: δ: the α-step is safe while det(I + α ∇²A) stays in [1 - δ, 1 + δ] over the batch
    :param alpha_factor: β > 1: α is multiplied or divided by it in every iteration
    :param max_alpha: α is never raised above
    :param alpha_iterations: Optimizer steps of the fit to the α-policy
    :param alpha_learning_rate: Learning rate of that fit, it can be a function of the current progress remaining
    :param alpha_solver: How the α-policy is fitted: ``"adam"``, as in the paper
    :param max_out_of_range: α is lowered when a larger share of the ratios π_α/π̄ leaves PPO's clip range
    :param bias_z: α is lowered when the estimated improvement of the α-policy is negative by more standard errors than this
    :param max_action_grad_norm: Longer rows of dÂ/da are scaled down to this norm; ``None`` for no limit
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

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
        alpha: float = 1e-5,
        alpha_interval: float = 0.4,
        alpha_factor: float = 1.1,
        max_alpha: float = 1.0,
        alpha_iterations: int = 16,
        alpha_learning_rate: float | Schedule = 1e-3,
        alpha_solver: str = "adam",
        max_out_of_range: float = 0.5,
        bias_z: float = 1.0,
        max_action_grad_norm: float | None = None,
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
        self.alpha_interval = alpha_interval
        self.alpha_factor = alpha_factor
        self.max_alpha = max_alpha
        self.alpha_iterations = alpha_iterations
        self.alpha_learning_rate = alpha_learning_rate
        self.alpha_solver = alpha_solver
        self.max_out_of_range = max_out_of_range
        self.bias_z = bias_z
        self.max_action_grad_norm = max_action_grad_norm
        self.alpha_controller: AlphaController | None = None

        if _init_setup_model:
            self._setup_model()

    def _check_hyperparameters(self) -> None:
        assert math.isfinite(self.alpha) and self.alpha >= 0, f"`alpha` must be 0 or positive, not {self.alpha}"
        assert self.max_alpha >= self.alpha, f"`max_alpha` ({self.max_alpha}) must not be less than `alpha` ({self.alpha})"
        assert 0 < self.alpha_interval < 1, f"`alpha_interval` must lie between 0 and 1, not {self.alpha_interval}"
        assert self.alpha_factor > 1, f"`alpha_factor` must be greater than 1, not {self.alpha_factor}"
        assert self.alpha_iterations >= 1, f"`alpha_iterations` must be at least 1, not {self.alpha_iterations}"
        assert callable(self.alpha_learning_rate) or self.alpha_learning_rate > 0, (
            f"`alpha_learning_rate` must be positive, not {self.alpha_learning_rate}"
        )
        assert self.alpha_solver == "adam", f'`alpha_solver` must be "adam", not {self.alpha_solver!r}'
        assert 0 < self.max_out_of_range <= 1, f"`max_out_of_range` must lie in (0, 1], not {self.max_out_of_range}"
        assert self.bias_z >= 0, f"`bias_z` must be 0 or positive, not {self.bias_z}"
        assert self.max_action_grad_norm is None or self.max_action_grad_norm > 0, (
            f"`max_action_grad_norm` must be positive, or `None` for no limit, not {self.max_action_grad_norm}"
        )

    def _setup_model(self) -> None:
        self._check_hyperparameters()
        super()._setup_model()
        self._alpha_lr_schedule = FloatSchedule(self.alpha_learning_rate)
        settings = AlphaSettings(
            self.alpha, self.alpha_interval, self.alpha_factor, self.max_alpha, self.max_out_of_range, self.bias_z
        )
        # A loaded model brings its controller along, unless `load` was given other hyper-parameters.
        if self.alpha_controller is None or self.alpha_controller.settings != settings:
            self.alpha_controller = AlphaController(settings)
        if self._can_fit():
            # On the policy, so that it is saved and loaded as an optimizer, with its parameters.
            self.policy.alpha_optimizer = th.optim.Adam(  # type: ignore[assignment]
                actor_parameters(self.policy), lr=self._alpha_lr_schedule(1.0), betas=(0.7, 0.95)
            )

    def _can_fit(self) -> bool:
        return self.alpha > 0 and self._unsupported() is None

    def _wants_gradients(self) -> bool:
        return self.alpha > 0

    def train(self) -> None:
        """Move the policy towards the α-policy, then make PPO's update against the virtual policy."""
        if not self._wants_gradients():
            super().train()
            return
        assert self.alpha_controller is not None
        if self._has_gradients:
            self._alpha_step(self.alpha_controller)
            parameters, optimizer = list(self.policy.parameters()), self.policy.optimizer
            before = snapshot(parameters, optimizer)
            super().train()
            if not all(parameter.isfinite().all() for parameter in parameters):
                # With σ tiny a ratio may overflow in the PPO step; the α-step alone is kept.
                restore(parameters, optimizer, before)
                self.logger.record("train/ppo_step_undone", 1)
        else:
            if self._gradients_unusable:
                self.logger.record("train/alpha_decision", self.alpha_controller.no_gradients())
                self.logger.record("train/alpha", self.alpha_controller.alpha)
            super().train()

    def _alpha_step(self, controller: AlphaController) -> None:
        """Fit the α-policy, judge it, move α, and put log π_h where PPO looks for the old policy's log-probabilities."""
        buffer = self.rollout_buffer
        assert isinstance(buffer, GradientRolloutBuffer)
        batch = buffer.gradient_batch()
        self.policy.set_training_mode(False)
        with th.no_grad():
            old_mean, old_std = self.gaussian(batch.observations)
        base_rate = self._alpha_lr_schedule(self._current_progress_remaining)
        alpha = controller.alpha
        fit = AdamFit(self.policy, self.alpha_iterations, self.max_grad_norm)
        loss_ratio, rate = fit.fit(
            batch.observations,
            batch.noise,
            batch.actions + alpha * batch.action_gradients,
            old_std,
            base_rate * controller.learning_rate_scale,
        )
        fitted = loss_ratio < 1
        diagnostics = None
        if fitted:
            with th.no_grad():
                mean, std = self.gaussian(batch.observations)
            old, new = log_prob(batch.actions, old_mean, old_std), log_prob(batch.actions, mean, std)
            clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
            diagnostics = diagnose(batch.advantages.flatten(), old, new, old_std, std, clip_range)
            n_steps, n_envs = buffer.log_probs.shape
            # gradient_batch has the environments first.
            virtual = virtual_log_prob(old, new).reshape(n_envs, n_steps).T
            buffer.log_probs = virtual.cpu().numpy().astype(np.float32)
        if base_rate > 0:
            controller.adapt_learning_rate(rate / base_rate)
        decision = controller.update(diagnostics)
        self._log_alpha_step(alpha, loss_ratio, decision, diagnostics)

    def _log_alpha_step(self, alpha: float, loss_ratio: float, decision: str, diagnostics: Any) -> None:
        self.logger.record("train/alpha", alpha)
        self.logger.record("train/alpha_loss_ratio", loss_ratio)
        self.logger.record("train/alpha_decision", decision)
        if diagnostics is not None:
            self.logger.record("train/hessian_det_min", diagnostics.det_min)
            self.logger.record("train/hessian_det_mean", diagnostics.det_mean)
            self.logger.record("train/hessian_det_max", diagnostics.det_max)
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

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        if self._can_fit():
            state_dicts = [*state_dicts, "policy.alpha_optimizer"]
        return state_dicts, variables

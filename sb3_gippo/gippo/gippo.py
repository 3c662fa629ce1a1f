"""GI-PPO: PPO informed by the analytic gradients of its environment."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_gippo.common.optimizers import leaving_out_nonfinite_steps
from sb3_gippo.gippo.alpha import (
    AgreementController,
    AlphaController,
    AlphaSettings,
    Diagnostics,
    PublishedController,
    agreement,
    diagnose,
    log_prob,
    virtual_log_prob,
)
from sb3_gippo.gippo.fit import AdamFit, clamp_log_std
from sb3_gippo.gippo.trust_region import Gaussian, TrustRegion, fit_displacement, natural_displacement, pull_back, std_freedom
from sb3_gippo.on_policy.gradient_ppo import GradientPPO, check_integer
from sb3_gippo.rollout.buffer import GradientBatch, GradientRolloutBuffer

CONTROLLERS: dict[str, Any] = {"trust_region": AgreementController, "adam": PublishedController}
"""control of α by solver"""

SelfGIPPO = TypeVar("SelfGIPPO", bound="GIPPO")


class GIPPO(GradientPPO):
    """
    Gradient Informed Proximal Policy Optimization (GI-PPO).

    Paper: https://arxiv.org/abs/2312.08710 (NeurIPS 2023)

    Before PPO's update, the policy is moved towards the α-policy, ``a + α · dÂ/da`` for every sampled action ``a``; PPO then
    works against the virtual policy π_h, the mean of sampling policy and the α-policy. α is raised while the α-policy stays
    a valid density near the batch, and lowered when the gradients prove biased or lead too far away.

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
    :param alpha_interval: δ (published solver): the α-step is safe while det(I + α ∇²A) stays in [1 - δ, 1 + δ]
    :param alpha_factor: β > 1: α is multiplied or divided by it in every iteration
    :param max_alpha: α is never raised above
    :param alpha_iterations: Optimizer steps of the fit to the α-policy
    :param alpha_learning_rate: Learning rate of that fit, it can be a function of the current progress remaining.
        The trust region lowers it as its budget demands.
    :param alpha_solver: How the α-policy is fitted and α controlled: ``"trust_region"``, in KL budgets and by the agreement
        of gradients and advantages, or ``"adam"``, as in the paper
    :param max_out_of_range: α is lowered when a larger share of the ratios π_α/π̄ leaves PPO's clip range (published solver)
    :param bias_z: by how many standard errors the gradients must be seen to agree with the advantages for α to rise (trust
        region), or the improvement to be negative for α to fall (published solver)
    :param max_action_grad_norm: Longer rows of dÂ/da are scaled down to this norm; ``None`` for no limit
    :param alpha_kl: KL divergence the mean may move in one iteration (trust region); it shrinks with the remaining progress
    :param std_kl: KL divergence σ may move in one iteration (trust region); it shrinks with the remaining progress
    :param ppo_share: Share of these two that is left to the PPO step, however good the gradients (trust region). Raise it
        where actions matter in ways that have no gradient, such as which lane to block
    :param skip_contradicted: make no α-step in a batch whose advantages contradict its gradients by ``bias_z`` standard
        errors, whatever α (trust region). For problems where good and misleading batches take turns
    :param action_gradient_lambda: λ of the advantage whose gradient is used; ``None`` for ``gae_lambda``
    :param critic_steps: Minibatch steps that fit the critic after each PPO update, beside its value loss
    :param critic_windows: How many of the last windows those steps draw from
    :param critic_batch_size: Rows of their minibatches
    :param critic_learning_rate: Their learning rate; it decays as ``learning_rate`` does
    :param target_critic_tau: The sweep takes its values from a copy of the critic that follows it by this share after every
        update; ``None`` for the critic itself
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
        alpha_interval: float = 0.4,
        alpha_factor: float = 1.1,
        max_alpha: float = 1.0,
        alpha_iterations: int = 4,
        alpha_learning_rate: float | Schedule = 1e-2,
        alpha_solver: str = "trust_region",
        max_out_of_range: float = 0.5,
        bias_z: float = 1.0,
        max_action_grad_norm: float | None = None,
        alpha_kl: float = 0.1,
        std_kl: float = 0.01,
        ppo_share: float = 0.05,
        skip_contradicted: bool = False,
        action_gradient_lambda: float | None = None,
        critic_steps: int = 0,
        critic_windows: int = 1,
        critic_batch_size: int = 512,
        critic_learning_rate: float = 1e-3,
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
        self.alpha_interval = alpha_interval
        self.alpha_factor = alpha_factor
        self.max_alpha = max_alpha
        self.alpha_iterations = alpha_iterations
        self.alpha_learning_rate = alpha_learning_rate
        self.alpha_solver = alpha_solver
        self.max_out_of_range = max_out_of_range
        self.bias_z = bias_z
        self.max_action_grad_norm = max_action_grad_norm
        self.alpha_kl = alpha_kl
        self.std_kl = std_kl
        self.ppo_share = ppo_share
        self.skip_contradicted = skip_contradicted
        self.action_gradient_lambda = action_gradient_lambda
        self.critic_steps = critic_steps
        self.critic_windows = critic_windows
        self.critic_batch_size = critic_batch_size
        self.critic_learning_rate = critic_learning_rate
        self.target_critic_tau = target_critic_tau
        self.alpha_controller: AlphaController | None = None
        self.trust_region: TrustRegion | None = None

        if _init_setup_model:
            self._setup_model()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        assert isinstance(self.alpha, Real) and math.isfinite(self.alpha) and self.alpha >= 0, (
            f"`alpha` must be 0 or positive, not {self.alpha!r}"
        )
        assert self.max_alpha >= self.alpha, f"`max_alpha` ({self.max_alpha}) must not be less than `alpha` ({self.alpha})"
        assert 0 < self.alpha_interval < 1, f"`alpha_interval` must lie between 0 and 1, not {self.alpha_interval}"
        assert self.alpha_factor > 1, f"`alpha_factor` must be greater than 1, not {self.alpha_factor}"
        check_integer("alpha_iterations", self.alpha_iterations, 1)
        assert callable(self.alpha_learning_rate) or self.alpha_learning_rate > 0, (
            f"`alpha_learning_rate` must be positive, not {self.alpha_learning_rate}"
        )
        assert self.alpha_solver in CONTROLLERS, (
            f"`alpha_solver` must be one of {', '.join(CONTROLLERS)}, not {self.alpha_solver!r}"
        )
        assert self.alpha_kl > 0, f"`alpha_kl` must be positive, not {self.alpha_kl}"
        assert self.std_kl > 0, f"`std_kl` must be positive, not {self.std_kl}"
        assert 0 <= self.ppo_share <= 1, f"`ppo_share` must lie between 0 and 1, not {self.ppo_share}"
        assert 0 < self.max_out_of_range <= 1, f"`max_out_of_range` must lie in (0, 1], not {self.max_out_of_range}"
        assert self.bias_z >= 0, f"`bias_z` must be 0 or positive, not {self.bias_z}"

    def _setup_model(self) -> None:
        super()._setup_model()
        self._alpha_lr_schedule = FloatSchedule(self.alpha_learning_rate)
        settings = AlphaSettings(
            self.alpha, self.alpha_interval, self.alpha_factor, self.max_alpha, self.max_out_of_range, self.bias_z
        )
        # A loaded model brings its controller along, unless `load` was given other hyper-parameters.
        controller_class = CONTROLLERS[self.alpha_solver]
        controller = self.alpha_controller
        if not isinstance(controller, controller_class) or controller.settings != settings:
            self.alpha_controller = controller_class(settings)
            self.trust_region = TrustRegion() if self.alpha_solver == "trust_region" else None

    def _setup_optimizers(self) -> None:
        super()._setup_optimizers()
        actor = [*self._actor.mean, *self._actor.std]
        # The published moments average three batches; environments in phase need the memory of an episode.
        betas = (0.7, 0.95) if self.alpha_solver == "adam" else (0.9, 0.99)
        self.policy.alpha_optimizer = th.optim.Adam(actor, lr=1e-3, betas=betas, fused=True)  # type: ignore[assignment]
        # Mean and σ have learning rates of their own in the PPO step.
        groups = [{"params": group} for group in (*self._actor, self._critic)]
        optimizer_class, kwargs = self.policy.optimizer_class, self.policy.optimizer_kwargs
        self.policy.optimizer = optimizer_class(groups, lr=self.lr_schedule(1.0), **kwargs)  # type: ignore[call-arg]

    def _wants_gradients(self) -> bool:
        return self.alpha > 0

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        if self._has_gradients and self.trust_region is not None:
            rates = (self.trust_region.ppo_mean, self.trust_region.ppo_std)
            for group, rate in zip(self.policy.optimizer.param_groups, rates):
                group["lr"] *= rate.scale

    def train(self) -> None:
        """Move the policy towards the α-policy, then make PPO's update against the virtual policy."""
        self._log_gradients()
        if self._has_gradients:
            assert isinstance(self.rollout_buffer, GradientRolloutBuffer)
            batch = self.rollout_buffer.gradient_batch()
            self.policy.set_training_mode(False)
            self._ppo_step(batch, start=self._alpha_step(batch))
            self._critic_fit(batch)
            return
        if self._gradients_unusable:
            assert self.alpha_controller is not None
            self.logger.record("train/alpha_decision", self.alpha_controller.no_gradients())
            self.logger.record("train/alpha", self.alpha_controller.alpha)
        super().train()

    @property
    def _budgets(self) -> tuple[float, float]:
        """KL divergence that mean and σ may move in this iteration."""
        # `learn` may overshoot its last step, and then less than nothing remains.
        remaining = max(self._current_progress_remaining, 1e-3)
        return self.alpha_kl * remaining, self.std_kl * remaining

    def _alpha_step(self, batch: GradientBatch) -> Gaussian:
        """
        Fit the α-policy, judge it, move α, and put log π_h where PPO looks for the old policy's log-probabilities.

        :return: the policy as it is then, on the batch
        """
        controller, buffer = self.alpha_controller, self.rollout_buffer
        assert controller is not None
        old, last_layer = self._gaussian_and_last_layer(batch.observations)
        alpha = controller.alpha
        whitened = old[1] * batch.action_gradients
        slope, error = agreement(batch.advantages, batch.noise, whitened)
        if isinstance(controller, PublishedController):
            loss_ratio = self._published_fit(controller, batch, old)
        else:
            contradicted = self.skip_contradicted and slope + self.bias_z * error < 0
            self.logger.record("train/alpha_contradicted", float(contradicted))
            loss_ratio = self._trust_region_fit(0.0 if contradicted else alpha, batch, old, whitened, last_layer)
        diagnostics, new = None, old
        if loss_ratio is not None:
            with th.no_grad():
                new = self.gaussian(batch.observations)
            log_probs = log_prob(batch.actions, *old), log_prob(batch.actions, *new)
            diagnostics = diagnose(
                batch.advantages,
                (slope, error),
                log_probs,
                (old[1], new[1]),
                self.clip_range(self._current_progress_remaining),  # type: ignore[operator]
            )
            n_steps, n_envs = buffer.log_probs.shape
            # gradient_batch has the environments first.
            virtual = virtual_log_prob(*log_probs).reshape(n_envs, n_steps).T
            buffer.log_probs = virtual.cpu().numpy().astype(np.float32)
        decision = controller.update(diagnostics)
        self._log_alpha_step(alpha, loss_ratio, decision, diagnostics)
        return new

    def _published_fit(self, controller: PublishedController, batch: GradientBatch, old: Gaussian) -> float | None:
        nominal = self._alpha_lr_schedule(self._current_progress_remaining)
        fit = AdamFit(self.policy, self.alpha_iterations, self.max_grad_norm)
        loss_ratio, rate = fit.fit(
            batch.observations,
            batch.noise,
            batch.actions + controller.alpha * batch.action_gradients,
            old[1],
            nominal * controller.learning_rate_scale,
        )
        if nominal > 0:
            controller.adapt_learning_rate(rate / nominal)
        return loss_ratio if loss_ratio < 1 else None

    def _trust_region_fit(
        self, alpha: float, batch: GradientBatch, old: Gaussian, whitened: th.Tensor, last_layer: th.Tensor
    ) -> float | None:
        region = self.trust_region
        assert region is not None
        region.update_std_freedom(std_freedom(last_layer, batch.noise, whitened))
        self.logger.record("train/std_freedom", region.std_freedom)
        if alpha == 0:
            return 1.0  # no step; the gradients are judged all the same
        kl, std_kl = (alpha**2 * budget for budget in self._budgets)
        remaining = max(self._current_progress_remaining, 0.0)
        return fit_displacement(
            self.policy,
            self._actor,
            lambda: self.gaussian(batch.observations),
            old,
            batch.noise,
            natural_displacement(whitened, kl),
            (kl, std_kl),
            region.fit,
            self._alpha_lr_schedule(self._current_progress_remaining) * remaining,
            self.alpha_iterations,
            self.max_grad_norm,
            region.trusted_std_freedom(alpha),
        )

    def _gaussian_and_last_layer(self, observations: th.Tensor) -> tuple[Gaussian, th.Tensor]:
        """:return: the policy's Gaussian, and what the mean's last linear layer receives for it (n, p)"""
        inputs: list[th.Tensor] = []
        hook = self.policy.action_net.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        with th.no_grad():
            gaussian = self.gaussian(observations)
        hook.remove()
        return gaussian, inputs[0]

    def _ppo_step(self, batch: GradientBatch, start: Gaussian) -> None:
        """PPO's update, held within its share of the trust region; minibatches whose gradient is not finite are left out."""
        region = self.trust_region
        if region is None:
            self._finite_ppo_update()
        else:
            assert self.alpha_controller is not None
            values = [[p.detach().clone() for p in group] for group in self._actor]
            self._finite_ppo_update()
            self.policy.set_training_mode(False)
            budgets = region.ppo_budgets(*self._budgets, self.alpha_controller.alpha, self.ppo_share)
            made = pull_back(lambda: self.gaussian(batch.observations), start, self._actor, values, budgets)
            for rate, kl, budget in zip((region.ppo_mean, region.ppo_std), made, budgets):
                rate.update(kl, budget)
            self.logger.record("train/ppo_kl_mean", made[0])
            self.logger.record("train/ppo_kl_std", made[1])
        clamp_log_std(self.policy)

    def _finite_ppo_update(self) -> None:
        with leaving_out_nonfinite_steps(self.policy.optimizer):
            super().train()

    def _log_alpha_step(self, alpha: float, loss_ratio: float | None, decision: str, diagnostics: Diagnostics | None) -> None:
        self.logger.record("train/alpha", alpha)
        self.logger.record("train/alpha_loss_ratio", 1.0 if loss_ratio is None else loss_ratio)
        self.logger.record("train/alpha_decision", decision)
        if diagnostics is not None:
            self.logger.record("train/hessian_det_min", diagnostics.det_min)
            self.logger.record("train/hessian_det_mean", diagnostics.det_mean)
            self.logger.record("train/hessian_det_max", diagnostics.det_max)
            self.logger.record("train/alpha_improvement", diagnostics.improvement)
            self.logger.record("train/alpha_improvement_z", diagnostics.improvement_z)
            self.logger.record("train/out_of_range_ratio", diagnostics.out_of_range_ratio)
            self.logger.record("train/gradient_agreement", diagnostics.agreement)

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
        return [*state_dicts, *(["policy.alpha_optimizer"] if self._unsupported() is None else [])], variables

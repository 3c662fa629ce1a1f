"""The α-step as published: full-batch Adam steps on the α-policy's actions, α by the paper's control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_gippo.common.hyperparameters import check_integer, check_number, check_schedule, schedule_of
from sb3_gippo.common.optimizers import adam, restore, snapshot, trainable
from sb3_gippo.gippo.alpha_step import AlphaController, AlphaStep, Diagnostics, Made
from sb3_gippo.on_policy.actor import Actor
from sb3_gippo.rollout.action_gradients import Gaussian
from sb3_gippo.rollout.buffer import GradientBatch

MIN_LEARNING_RATE = 1e-5
"""the fit's learning rate is not reduced below"""


@dataclass(frozen=True)
class PublishedSettings:
    """
    What ``alpha_kwargs`` may hold with ``alpha_solver="published"``.

    :param n_iterations: Adam steps of the fit
    :param learning_rate: of the fit, it can be a function of the current progress remaining
    :param factor: β > 1: α is multiplied or divided by it in every iteration
    :param max_alpha: α is never raised above
    :param interval: δ: the step is safe while det(I + α ∇²A) stays in [1 - δ, 1 + δ]
    :param max_out_of_range: α is lowered when a larger share of the ratios π_α/π̄ leaves PPO's clip range
    :param bias_z: by how many standard errors the improvement must be negative for α to fall
    :raises AssertionError: for a value that makes no sense
    """

    n_iterations: int = 4
    learning_rate: float | Schedule = 1e-2
    factor: float = 1.1
    max_alpha: float = 1.0
    interval: float = 0.4
    max_out_of_range: float = 0.5
    bias_z: float = 1.0

    def __post_init__(self) -> None:
        check_integer("alpha_kwargs: n_iterations", self.n_iterations, 1)
        check_schedule("alpha_kwargs: learning_rate", self.learning_rate)
        check_number("alpha_kwargs: factor", self.factor, 1, open_low=True)
        check_number("alpha_kwargs: max_alpha", self.max_alpha, open_low=True)
        check_number("alpha_kwargs: interval", self.interval, 0, 1, open_low=True)
        check_number("alpha_kwargs: max_out_of_range", self.max_out_of_range, 0, 1, open_low=True)
        check_number("alpha_kwargs: bias_z", self.bias_z)


@dataclass
class PublishedController(AlphaController):
    """
    The paper's control: α rises while the α-policy is a valid density near the batch, and falls if it is not, if the estimated
    improvement is negative, or if too many ratios leave PPO's clip range.

    :param settings: hyper-parameters
    :param alpha: the present α
    :param learning_rate_scale: what failed fits left of the α-step's learning rate
    """

    RECOVERY: ClassVar[float] = 1.2

    settings: PublishedSettings
    alpha: float
    learning_rate_scale: float = 1.0

    def update(self, diagnostics: Diagnostics | None) -> str:
        settings, old = self.settings, self.alpha
        if diagnostics is None:
            return "fit_failed"
        decision, alpha = "safe", old * settings.factor
        low, high = 1 - settings.interval, 1 + settings.interval
        if not (low <= diagnostics.std_ratio_min and diagnostics.std_ratio_max <= high):
            decision, alpha = "unsafe_variance", old / settings.factor
        if diagnostics.improvement < 0 and diagnostics.improvement_z < -settings.bias_z:
            decision, alpha = "biased", old / settings.factor
        elif diagnostics.out_of_range_ratio > settings.max_out_of_range:
            decision, alpha = "out_of_range", old / settings.factor
        self.alpha = min(alpha, settings.max_alpha)
        return decision

    def adapt_learning_rate(self, scale: float) -> None:
        """
        Remember the learning rate a fit ended with, and let it recover where the first attempt succeeded.

        :param scale: that rate over the nominal one
        """
        # The paper only ever lowers it: the failures of a small α at the start would leave it at its floor for good.
        succeeded_at_once = scale >= self.learning_rate_scale
        self.learning_rate_scale = min(1.0, scale * self.RECOVERY) if succeeded_at_once else scale


def fit_loss(mean: th.Tensor, std: th.Tensor, noise: th.Tensor, target: th.Tensor, scale: th.Tensor) -> th.Tensor:
    """
    How far the policy's actions are from the α-policy's, in units of the sampling policy's σ:
    mean over samples of ‖(μ + σ ε - target) / scale‖².

    :param mean: μ (n, action_dim)
    :param std: σ (n, action_dim)
    :param noise: ε (n, action_dim)
    :param target: (n, action_dim)
    :param scale: σ̄ (n, action_dim), or 1
    :return: a scalar
    """
    return ((mean + std * noise - target) / scale).square().sum(1).mean()


class PublishedStep(AlphaStep):
    """
    Full-batch Adam steps towards a + α·g; if the loss did not fall, restore the actor, lower the learning rate, try again.
    """

    Settings = PublishedSettings
    RETRIES: ClassVar[int] = 8
    REDUCTION: ClassVar[float] = 1.5

    settings: PublishedSettings
    controller: PublishedController

    def __init__(self, actor: Actor, alpha: float, settings: PublishedSettings, max_grad_norm: float):
        super().__init__(actor, alpha, settings, max_grad_norm)
        self.controller = PublishedController(settings, alpha)
        self.parameters = [*actor.mean, *actor.std]
        self.optimizer = adam(self.parameters, lr=1e-3, betas=(0.7, 0.95))
        self.rate = schedule_of("alpha_kwargs: learning_rate", settings.learning_rate)

    def make(
        self, batch: GradientBatch, old: Gaussian, features: th.Tensor, agreed: tuple[float, float], progress_remaining: float
    ) -> Made:
        self.log = {}
        nominal = self.rate(progress_remaining)
        target = batch.actions + self.alpha * batch.action_gradients
        ratio, rate = self.fit(batch, target, old[1], nominal * self.controller.learning_rate_scale)
        self.log["train/alpha_learning_rate"] = rate
        if nominal > 0:
            self.controller.adapt_learning_rate(rate / nominal)
        return Made(ratio, 1.0) if ratio < 1 else Made(None, 0.0)

    def fit(self, batch: GradientBatch, target: th.Tensor, scale: th.Tensor, learning_rate: float) -> tuple[float, float]:
        """
        Move the actor towards the target actions. It is never left worse than it was found.

        :param batch: the window
        :param target: (n, action_dim), a + α·g
        :param scale: (n, action_dim), unit of the residual
        :param learning_rate: of the first attempt
        :return: final loss over initial loss (1 if every attempt failed), and the learning rate of the last attempt
        """

        def loss() -> th.Tensor:
            return fit_loss(*self.actor.gaussian(batch.observations), batch.noise, target, scale)

        optimizer, parameters = self.optimizer, self.parameters
        if optimizer is None or not trainable(parameters):
            return 1.0, learning_rate
        with th.no_grad():
            initial = loss().item()
        before = snapshot(parameters, optimizer)
        for _ in range(self.RETRIES):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            for _ in range(self.settings.n_iterations):
                optimizer.zero_grad()
                loss().backward()
                nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                optimizer.step()
            self.actor.keep_std_in_bounds()
            with th.no_grad():
                final = loss().item()
            if final < initial:  # False for NaN
                optimizer.zero_grad()
                return final / initial, learning_rate
            restore(parameters, optimizer, before)
            learning_rate = max(learning_rate / self.REDUCTION, min(MIN_LEARNING_RATE, learning_rate))
        optimizer.zero_grad()
        return 1.0, learning_rate

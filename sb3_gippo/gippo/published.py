"""The α-step as published: full-batch Adam steps on the α-policy's actions, α by the paper's control."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_gippo.common.hyperparameters import check_integer, check_number, check_schedule, schedule_of
from sb3_gippo.common.optimizers import adam, put_back, restore, snapshot, trainable
from sb3_gippo.gippo.alpha_step import (
    MAX_LOG_RATIO,
    AlphaController,
    AlphaStep,
    Diagnostics,
    Made,
    Spent,
    TrainPPO,
    virtual_log_prob,
)
from sb3_gippo.gippo.signal import Signal
from sb3_gippo.gippo.trust_region import kl_parts
from sb3_gippo.on_policy.actor import Actor
from sb3_gippo.rollout.action_gradients import Gaussian
from sb3_gippo.rollout.buffer import GradientBatch

MIN_LEARNING_RATE = 1e-5
"""the fit's learning rate is not reduced below"""
RETRIES = 8
"""attempts at a fit, and at a PPO step"""
REDUCTION = 1.5
"""what the learning rate is divided by after a failed one"""
MIN_PPO_RATE, MAX_PPO_RATE = 1e-6, 1e-2
"""between these PPO's learning rate follows the KL divergence"""


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
    :param ppo_kl: PPO's learning rate falls while its steps make more than twice this KL divergence, and rises while they make
        less than half of it; ``None`` for no such control
    :raises AssertionError: for a value that makes no sense
    """

    n_iterations: int = 16
    learning_rate: float | Schedule = 1e-3
    factor: float = 1.1
    max_alpha: float = 1.0
    interval: float = 0.4
    max_out_of_range: float = 0.5
    ppo_kl: float | None = None

    def __post_init__(self) -> None:
        # The first and the last step's losses are compared.
        check_integer("alpha_kwargs: n_iterations", self.n_iterations, 2)
        check_schedule("alpha_kwargs: learning_rate", self.learning_rate)
        check_number("alpha_kwargs: factor", self.factor, 1, open_low=True)
        check_number("alpha_kwargs: max_alpha", self.max_alpha, open_low=True)
        check_number("alpha_kwargs: interval", self.interval, 0, 1, open_low=True)
        check_number("alpha_kwargs: max_out_of_range", self.max_out_of_range, 0, 1, open_low=True)
        if self.ppo_kl is not None:
            check_number("alpha_kwargs: ppo_kl", self.ppo_kl, open_low=True, otherwise=" (`None`: no control)")


@dataclass
class PublishedController(AlphaController):
    """
    The paper's control: α rises while the α-policy is a valid density near the batch, and falls if it is not, if the estimated
    improvement is negative, or if too many ratios leave PPO's clip range.

    The improvement is noisy: it counts as negative where it lies below 0 and more than one standard deviation below its own
    mean, both of all iterations so far.

    :param settings: hyper-parameters
    :param alpha: the present α
    :param learning_rate_scale: what failed fits left of the α-step's learning rate
    :param ppo_rate_scale: what failed PPO steps, and the control by ``ppo_kl``, made of PPO's
    :param gain_mean: running mean of the estimated improvements
    :param gain_std: their running standard deviation
    :param gain_count: how many there were; not 0, that the first has something to be compared with
    """

    settings: PublishedSettings
    alpha: float
    learning_rate_scale: float = 1.0
    ppo_rate_scale: float = 1.0
    gain_mean: float = 0.0
    gain_std: float = 1.0
    gain_count: float = 1e-4

    def update(self, diagnostics: Diagnostics | None) -> str:
        settings, old = self.settings, self.alpha
        biased = self.is_biased(0.0 if diagnostics is None else diagnostics.gain)
        if diagnostics is None:
            return "fit_failed"
        decision, alpha = "safe", old * settings.factor
        low, high = 1 - settings.interval, 1 + settings.interval
        if not (low <= diagnostics.std_ratio_min and diagnostics.std_ratio_max <= high):
            decision, alpha = "unsafe_variance", old / settings.factor
        if biased:
            decision, alpha = "biased", old / settings.factor
        elif diagnostics.out_of_range_ratio > settings.max_out_of_range:
            decision, alpha = "out_of_range", old / settings.factor
        self.alpha = min(alpha, settings.max_alpha)
        return decision

    def is_biased(self, gain: float) -> bool:
        """
        Judge an estimated improvement by those before it, and add it to them.

        :param gain: Σ Â (ρ - 1) over the batch
        :return: whether it is negative beyond its noise; what is not finite is, and is not added
        """
        if not math.isfinite(gain):
            return True
        distance, variance = gain - self.gain_mean, self.gain_std**2
        biased = gain < 0 and distance < -math.sqrt(variance + 1e-5)
        count = self.gain_count + 1
        self.gain_mean += distance / count
        self.gain_std = math.sqrt(self.gain_count / count * (variance + distance**2 / count))
        self.gain_count = count
        return biased

    def lower_learning_rate(self, nominal: float) -> None:
        """
        After a fit that failed: the next one begins with a smaller rate.

        :param nominal: the learning rate that ``learning_rate_scale`` scales
        """
        lowest = MIN_LEARNING_RATE / nominal if nominal > 0 else 1.0
        self.learning_rate_scale = min(self.learning_rate_scale, max(self.learning_rate_scale / REDUCTION, lowest))


def fit_loss(mean: th.Tensor, std: th.Tensor, noise: th.Tensor, target: th.Tensor) -> th.Tensor:
    """
    How far the policy's actions are from the α-policy's: mean over samples of ‖μ + σ ε - target‖².

    :param mean: μ (n, action_dim)
    :param std: σ (n, action_dim)
    :param noise: ε (n, action_dim)
    :param target: (n, action_dim)
    :return: a scalar
    """
    return (mean + std * noise - target).square().sum(1).mean()


class RateByKL:
    """
    PPO's learning rate by what its steps make of the policy, as the authors' code takes it over from rl_games: after each step
    the rate is divided by 1.5 if the step before went further than twice the threshold, and multiplied by it if that went less
    than half as far; the first step of an update has none before it, which counts as 0.

    :param gaussian: the policy as it is, on the window
    :param threshold: KL divergence
    :param scale: what the steps are multiplied by beside
    :ivar factor: by what the rate has changed
    """

    def __init__(self, gaussian: Callable[[], Gaussian], threshold: float | None, scale: float):
        self.gaussian, self.threshold, self.scale = gaussian, threshold, scale
        self.factor = 1.0
        self._applied = 1.0
        self._before: Gaussian | None = None

    @th.no_grad()
    def before_step(self, optimizer: th.optim.Optimizer, *_: Any) -> None:
        """To be called before each step."""
        assert self.threshold is not None
        for group in optimizer.param_groups:
            group["lr"] *= self.factor / self._applied
        self._applied = self.factor
        now, rate = self.gaussian(), optimizer.param_groups[0]["lr"] * self.scale
        kl = 0.0 if self._before is None else sum(part.item() for part in kl_parts(now, self._before))
        self._before = now
        if rate > 0 and kl > 2 * self.threshold:
            self.factor *= max(rate / REDUCTION, MIN_PPO_RATE) / rate
        elif rate > 0 and kl < self.threshold / 2:
            self.factor *= min(rate * REDUCTION, MAX_PPO_RATE) / rate


class PublishedStep(AlphaStep):
    """
    Full-batch Adam steps towards a + α·g; if the loss did not fall, restore the actor, lower the learning rate, try again.
    PPO's step likewise, as the authors' code has it (https://github.com/SonSang/gippo).
    """

    Settings = PublishedSettings
    limits_gradients = False

    settings: PublishedSettings
    controller: PublishedController

    def __init__(self, actor: Actor, alpha: float, settings: PublishedSettings, max_grad_norm: float):
        super().__init__(actor, alpha, settings, max_grad_norm)
        self.controller = PublishedController(settings, alpha)
        self.parameters = [*actor.mean, *actor.std]
        self.optimizer = adam(self.parameters, lr=1e-3, betas=(0.7, 0.95))
        self.rate = schedule_of("alpha_kwargs: learning_rate", settings.learning_rate)

    def make(self, batch: GradientBatch, old: Gaussian, signal: Signal, progress_remaining: float) -> Made:
        nominal = self.rate(progress_remaining)
        learning_rate = nominal * self.controller.learning_rate_scale
        self.log = {"train/alpha_learning_rate": learning_rate}
        ratio = self.fit(batch, batch.actions + self.alpha * batch.action_gradients, learning_rate)
        if ratio is None:
            self.controller.lower_learning_rate(nominal)
            return Made(None, Spent())
        return Made(ratio, Spent(1.0, 1.0))

    def fit(self, batch: GradientBatch, target: th.Tensor, learning_rate: float) -> float | None:
        """
        Move the actor towards the target actions. It is left as it was where every attempt failed.

        The moments are those of all steps so far, failed ones included, unless they are not finite.

        :param batch: the window
        :param target: (n, action_dim), a + α·g
        :param learning_rate: of the first attempt
        :return: the loss before the last step over that before the first; ``None`` if it never fell
        """
        optimizer, parameters = self.optimizer, self.parameters
        if optimizer is None or not trainable(parameters):
            return None
        before = snapshot(parameters, optimizer)
        for _ in range(RETRIES):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            losses = []
            for _ in range(self.settings.n_iterations):
                loss = fit_loss(*self.actor.gaussian(batch.observations), batch.noise, target)
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
                optimizer.step()
            optimizer.zero_grad()
            self.actor.keep_std_in_bounds()
            if losses[-1] < losses[0] and nn.utils.get_total_norm(parameters).isfinite():
                return losses[-1] / losses[0]
            put_back(parameters, before[0])
            learning_rate /= REDUCTION
            moments = [value for values in optimizer.state.values() for value in values.values()]
            if not nn.utils.get_total_norm(moments).isfinite():
                restore(parameters, optimizer, before)
        return None

    def virtual_log_prob(self, old: th.Tensor, alpha: th.Tensor) -> th.Tensor:
        """As the base's, but where a single sample's log-probabilities are further apart, π_h is π_α for all."""
        if ((old - alpha).abs() > MAX_LOG_RATIO).any():
            return alpha.where(alpha.isfinite(), old)
        return virtual_log_prob(old, alpha)

    def make_ppo_step(self, train: TrainPPO, batch: GradientBatch, before: Sequence[Sequence[th.Tensor]]) -> None:
        """If PPO's loss in the last epoch is above that in the first: restore the actor, lower the rate, try again."""
        actor, full = self.actor, self.controller.ppo_rate_scale
        groups = (actor.moves_mean, actor.moves_std)
        scale = full
        for _ in range(RETRIES):
            losses: list[float] = []
            with self._rate_follows_kl(batch, scale) as rate:
                train([(group, scale) for group in groups], losses)
            if losses[-1] <= losses[0]:  # False for NaN
                self.controller.ppo_rate_scale = full if self.settings.ppo_kl is None else scale * rate.factor
                return
            for group, values in zip(groups, before):
                put_back(group, values)
            scale = full / REDUCTION  # once, not once an attempt; the attempts differ by the optimizer's moments
        self.controller.ppo_rate_scale = scale

    @contextmanager
    def _rate_follows_kl(self, batch: GradientBatch, scale: float) -> Iterator[RateByKL]:
        """Within this context PPO's learning rate follows ``ppo_kl``, if it is given."""
        rate = RateByKL(lambda: self.actor.gaussian(batch.observations), self.settings.ppo_kl, scale)
        if self.settings.ppo_kl is None:
            yield rate
            return
        handle = self.actor.policy.optimizer.register_step_pre_hook(rate.before_step)
        try:
            yield rate
        finally:
            handle.remove()

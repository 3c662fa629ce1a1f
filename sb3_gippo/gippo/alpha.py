"""The α-policy: its density, what a batch says of an α-step, and the control of α."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch as th

MAX_LOG_RATIO = 4.0
"""where |log π̄ - log π_α| is larger, the virtual policy is π_α alone"""


@dataclass(frozen=True)
class AlphaSettings:
    """The α control's hyper-parameters; see :class:`~sb3_gippo.GIPPO` for their meaning."""

    alpha: float
    interval: float
    factor: float
    max_alpha: float
    max_out_of_range: float
    bias_z: float


@dataclass
class Diagnostics:
    """
    What the batch says of an α-step that was made.

    :param det_min: smallest det(I + α ∇²A) over the batch, as realised by the fitted policy: σ_α / σ̄, multiplied over
        dimensions
    :param det_mean: its mean
    :param det_max: its largest
    :param improvement: mean of Â·(ρ - 1), the estimated gain, with ρ = π_α/π̄
    :param improvement_z: that mean in units of its standard error
    :param out_of_range_ratio: share of samples with ρ outside [1 - clip_range, 1 + clip_range]
    :param agreement: slope of the advantages over what the action gradients predict of them, see :func:`agreement`
    :param agreement_error: its standard error
    """

    det_min: float
    det_mean: float
    det_max: float
    improvement: float
    improvement_z: float
    out_of_range_ratio: float
    agreement: float
    agreement_error: float


class AlphaController:
    """Control of α. Its state is saved with the model."""

    settings: AlphaSettings
    alpha: float

    def update(self, diagnostics: Diagnostics | None) -> str:
        """
        Move α by what the α-step showed.

        :param diagnostics: ``None`` if the fit failed
        :return: why α moved
        """
        raise NotImplementedError

    def no_gradients(self) -> str:
        """
        Lower α after a batch in which no gradient was usable.

        :return: ``no_gradients``
        """
        self.alpha /= self.settings.factor
        return "no_gradients"


@dataclass
class PublishedController(AlphaController):
    """
    The paper's control: α rises while the α-policy is a valid density near the batch, and falls if it is not, if the estimated
    improvement is negative, or if too many ratios leave PPO's clip range.

    :param settings: hyper-parameters
    :ivar alpha: the present α
    :ivar learning_rate_scale: what failed fits left of the α-step's learning rate, 1 at the start
    """

    RECOVERY: ClassVar[float] = 1.2

    settings: AlphaSettings
    alpha: float = field(init=False)
    learning_rate_scale: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        self.alpha = self.settings.alpha

    def update(self, diagnostics: Diagnostics | None) -> str:
        settings, old = self.settings, self.alpha
        if diagnostics is None:
            return "fit_failed"
        decision, alpha = "safe", old * settings.factor
        low, high = 1 - settings.interval, 1 + settings.interval
        if not (low <= diagnostics.det_min and diagnostics.det_max <= high):
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


@dataclass
class AgreementController(AlphaController):
    """
    Control by agreement: α rises while the action gradients predict the advantages, and falls while they do not.

    The slope of :func:`agreement` is 1 for exact gradients of a linear advantage, ½ for those of a quadratic one whose optimum
    is near, 0 for useless gradients and negative for misleading ones. A batch measures it with an error, so it is tracked by
    a scalar Kalman filter (a random walk with step :attr:`DRIFT`).

    :param settings: hyper-parameters
    :ivar alpha: the present α, the length of the α-step as a share of the trust region's
    :ivar slope: what is believed of the slope
    :ivar variance: how uncertain that is
    """

    DRIFT: ClassVar[float] = 0.03
    MIN_SLOPE: ClassVar[float] = 0.1
    """a smaller one means that the gradients say next to nothing of the advantages"""
    MIN_ALPHA: ClassVar[float] = 0.05
    """a smaller α is 0, no α-step at all: even small steps add up where gradients mislead for good; α returns at this value"""

    settings: AlphaSettings
    alpha: float = field(init=False)
    slope: float = field(init=False, default=0.5)
    variance: float = field(init=False, default=0.25)

    def __post_init__(self) -> None:
        self.alpha = self.settings.alpha

    def update(self, diagnostics: Diagnostics | None) -> str:
        if diagnostics is None:
            return "fit_failed"
        self.observe(diagnostics.agreement, diagnostics.agreement_error)
        agrees = self.slope - self.settings.bias_z * math.sqrt(self.variance) > self.MIN_SLOPE
        smallest = min(self.MIN_ALPHA, self.settings.max_alpha)
        if agrees:
            self.alpha = min(max(self.alpha * self.settings.factor, smallest), self.settings.max_alpha)
        else:
            lower = self.alpha / self.settings.factor
            self.alpha = lower if lower >= smallest else 0.0
        return "agrees" if agrees else "disagrees"

    def observe(self, slope: float, error: float) -> None:
        """
        Update what is believed of the slope.

        :param slope: of this batch
        :param error: its standard error; where that is not finite, the batch says nothing
        """
        variance = self.variance + self.DRIFT**2
        if math.isfinite(slope) and math.isfinite(error):
            gain = variance / (variance + error**2) if error > 0 else 1.0
            self.slope += gain * (slope - self.slope)
            variance *= 1 - gain
        self.variance = variance


def log_prob(actions: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """:return: (n,), log density of a diagonal Gaussian at ``actions`` (n, action_dim)"""
    return th.distributions.Normal(mean, std, validate_args=False).log_prob(actions).sum(1)


def virtual_log_prob(old: th.Tensor, alpha: th.Tensor) -> th.Tensor:
    """
    Log density of the virtual policy π_h = ½(π̄ + π_α), of π_α alone where the two are further apart than
    :data:`MAX_LOG_RATIO` (and of π̄ where π_α is not finite).

    :param old: log π̄ (n,)
    :param alpha: log π_α (n,)
    :return: (n,)
    """
    mixture = th.logaddexp(old, alpha) - math.log(2)
    virtual = th.where((old - alpha).abs() > MAX_LOG_RATIO, alpha, mixture)
    return th.where(virtual.isfinite(), virtual, old)


def agreement(advantages: th.Tensor, noise: th.Tensor, whitened: th.Tensor) -> tuple[float, float]:
    """
    How far the action gradients predict the advantages: to first order a sample's own noise moves its own advantage by
    p = (σ g)·ε, so that the regression of Â on p over the batch has slope 1. Gradients that are noise, belong to other
    samples or have the wrong sign have slopes of 0 or less; a large bias pulls the slope towards 0.

    :param advantages: Â (n,)
    :param noise: ε (n, action_dim)
    :param whitened: σ g (n, action_dim)
    :return: the slope and its standard error; not a number where there is nothing to predict
    """
    predicted = (whitened * noise).sum(1).double()
    predicted = predicted - predicted.mean()
    centred = (advantages - advantages.mean()).double()
    power = predicted.square().sum()
    slope = (predicted * centred).sum() / power
    error = ((centred - slope * predicted).square().mean() / power).sqrt()
    return slope.item(), error.item()


def diagnose(
    advantages: th.Tensor,
    agreed: tuple[float, float],
    log_probs: tuple[th.Tensor, th.Tensor],
    stds: tuple[th.Tensor, th.Tensor],
    clip_range: float,
) -> Diagnostics:
    """
    Judge an α-step on the batch it was made from; rows of all arguments belong together.

    The advantages are centred: E[ρ - 1] = 0 makes that free, and less noisy.

    :param advantages: Â (n,)
    :param agreed: the batch's :func:`agreement`
    :param log_probs: log π̄ and log π_α (n,)
    :param stds: σ̄ and σ_α (n, action_dim)
    :param clip_range: PPO's
    """
    det = (stds[1].log() - stds[0].log()).sum(1).exp()
    ratio = (log_probs[1] - log_probs[0]).clamp(-16, 16).exp()
    gain = (advantages - advantages.mean()) * (ratio - 1)
    standard_error = gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
    improvement = gain.mean().item()
    return Diagnostics(
        det.min().item(),
        det.mean().item(),
        det.max().item(),
        improvement,
        improvement / standard_error if standard_error > 0 else 0.0,
        ((ratio - 1).abs() > clip_range).float().mean().item(),
        *agreed,
    )

"""The α-policy: its fit, the diagnostics, and the control of α."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

LOG_STD_MIN = math.log(1e-6)
"""the policy's log σ is kept above: below it float32 can no longer tell the actions apart"""
MAX_LOG_RATIO = 4.0
"""where |log π̄ - log π_α| is larger, the virtual policy is π_α alone"""
MIN_LEARNING_RATE = 1e-5
"""the α-step's learning rate is not reduced below"""


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
    """

    det_min: float
    det_mean: float
    det_max: float
    improvement: float
    improvement_z: float
    out_of_range_ratio: float


@dataclass
class AlphaController:
    """
    Multiplicative control of α.

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
        """
        Move α by what the α-step showed.

        :param diagnostics: ``None`` if the fit failed
        :return: ``fit_failed`` (it did not), ``unsafe_variance``, ``biased``, ``out_of_range`` (down), ``safe`` (up)
        """
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

    def no_gradients(self) -> str:
        """
        Lower α after a batch in which no gradient was usable.

        :return: ``no_gradients``
        """
        self.alpha /= self.settings.factor
        return "no_gradients"


def actor_parameters(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    """
    The parameters the action depends on and the value does not: shared features belong to the PPO step alone.

    :param policy: with a diagonal Gaussian distribution
    :return: in the policy's order
    """
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    # Two rows, not one: normalisation layers want a batch.
    observation = th.zeros(2, *policy.observation_space.shape, device=policy.device)  # type: ignore[misc]
    training = policy.training
    policy.set_training_mode(False)
    distribution: Any = policy.get_distribution(observation).distribution
    outputs = (distribution.mean.sum() + distribution.stddev.sum(), policy.predict_values(observation).sum())
    acts, values = (th.autograd.grad(output, parameters, allow_unused=True) for output in outputs)
    policy.set_training_mode(training)
    return [p for p, act, value in zip(parameters, acts, values) if act is not None and value is None]


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


class AdamFit:
    """
    The paper's solver: full-batch Adam steps; if the loss did not fall, restore the actor, lower the learning rate, try again.

    :param policy: its actor is fitted, with ``policy.alpha_optimizer``
    :param n_iterations: Adam steps
    :param max_grad_norm: gradient clipping
    """

    RETRIES = 8
    REDUCTION = 1.5

    def __init__(self, policy: ActorCriticPolicy, n_iterations: int, max_grad_norm: float):
        self.policy = policy
        self.optimizer: th.optim.Optimizer = policy.alpha_optimizer  # type: ignore[assignment]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.n_iterations = n_iterations
        self.max_grad_norm = max_grad_norm

    def fit(
        self,
        observations: th.Tensor,
        noise: th.Tensor,
        target: th.Tensor,
        scale: th.Tensor,
        learning_rate: float,
    ) -> tuple[float, float]:
        """
        Move the actor towards the target actions. It is never left worse than it was found.

        :param observations: (n, ...)
        :param noise: (n, action_dim)
        :param target: (n, action_dim), a + α·g
        :param scale: (n, action_dim), unit of the residual
        :param learning_rate: of the first attempt
        :return: final loss over initial loss (1 if every attempt failed), and the learning rate of the last attempt
        """

        def loss() -> th.Tensor:
            distribution: Any = self.policy.get_distribution(observations).distribution
            return fit_loss(distribution.mean, distribution.stddev, noise, target, scale)

        with th.no_grad():
            initial = loss().item()
        before = snapshot(self.parameters, self.optimizer)
        for _ in range(self.RETRIES):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            for _ in range(self.n_iterations):
                self.optimizer.zero_grad()
                loss().backward()
                nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
                self.optimizer.step()
            clamp_log_std(self.policy)
            with th.no_grad():
                final = loss().item()
            if final < initial:  # False for NaN
                self.optimizer.zero_grad()
                return final / initial, learning_rate
            restore(self.parameters, self.optimizer, before)
            learning_rate = max(learning_rate / self.REDUCTION, min(MIN_LEARNING_RATE, learning_rate))
        self.optimizer.zero_grad()
        return 1.0, learning_rate


Snapshot = tuple[list[th.Tensor], dict]


def snapshot(parameters: list[nn.Parameter], optimizer: th.optim.Optimizer) -> Snapshot:
    """:return: copies of the parameters and of the optimizer's state, for :func:`restore`"""
    return [p.detach().clone() for p in parameters], copy.deepcopy(optimizer.state_dict())


def restore(parameters: list[nn.Parameter], optimizer: th.optim.Optimizer, before: Snapshot) -> None:
    """Put parameters and optimizer back to a :func:`snapshot`, which can be used again."""
    with th.no_grad():
        for parameter, old in zip(parameters, before[0]):
            parameter.copy_(old)
    optimizer.load_state_dict(copy.deepcopy(before[1]))


def clamp_log_std(policy: ActorCriticPolicy) -> None:
    """Keep a state-independent log σ above its floor."""
    if isinstance(getattr(policy, "log_std", None), nn.Parameter):
        with th.no_grad():
            policy.log_std.clamp_(min=LOG_STD_MIN)


def log_prob(actions: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """:return: (n,), log density of a diagonal Gaussian at ``actions`` (n, action_dim)"""
    return th.distributions.Normal(mean, std).log_prob(actions).sum(1)


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


def diagnose(
    advantages: th.Tensor,
    old_log_prob: th.Tensor,
    alpha_log_prob: th.Tensor,
    old_std: th.Tensor,
    alpha_std: th.Tensor,
    clip_range: float,
) -> Diagnostics:
    """
    Judge an α-step on the batch it was made from; rows of all arguments belong together.

    The advantages are centred: E[ρ - 1] = 0 makes that free, and less noisy.

    :param advantages: Â (n,)
    :param old_log_prob: log π̄ (n,)
    :param alpha_log_prob: log π_α (n,)
    :param old_std: σ̄ (n, action_dim)
    :param alpha_std: σ_α (n, action_dim)
    :param clip_range: PPO's
    """
    det = (alpha_std.log() - old_std.log()).sum(1).exp()
    ratio = (alpha_log_prob - old_log_prob).clamp(-16, 16).exp()
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
    )

"""The α-step in KL budgets, mean and standard deviation apart; α follows the agreement of gradients and advantages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_gippo.common.hyperparameters import check_integer, check_number, check_schedule, schedule_of
from sb3_gippo.common.optimizers import adam, copies, restore, snapshot, trainable
from sb3_gippo.gippo.alpha_step import AlphaController, AlphaStep, Diagnostics, Made, Spent
from sb3_gippo.gippo.signal import Signal, in_double
from sb3_gippo.on_policy.actor import Actor
from sb3_gippo.rollout.action_gradients import Gaussian
from sb3_gippo.rollout.buffer import GradientBatch

ARRIVED = 1 / 3
"""distance of a mean from its optimum, in σ, as far as its last layer explains it (the real one is longer: measured, σ is too
small for the mean's last steps if it may shrink within 1 σ)"""


@dataclass(frozen=True)
class TrustRegionSettings:
    """
    What ``alpha_kwargs`` may hold with ``alpha_solver="trust_region"``.

    :param kl: KL divergence the mean may move in one iteration, it can be a function of the current progress remaining
    :param std_kl: the same for σ
    :param n_iterations: Adam steps of the mean's fit
    :param learning_rate: of that fit, it can be a function of the current progress remaining; lowered as the budget demands
    :param factor: β > 1: α is multiplied or divided by it in every iteration
    :param max_alpha: α is never raised above
    :param bias_z: by how many standard errors the gradients must be seen to agree with the advantages for α to rise
    :raises AssertionError: for a value that makes no sense
    """

    kl: float | Schedule = 0.3
    std_kl: float | Schedule = 0.3
    n_iterations: int = 4
    learning_rate: float | Schedule = 1e-2
    factor: float = 1.1
    max_alpha: float = 1.0
    bias_z: float = 1.0

    def __post_init__(self) -> None:
        for name in ("kl", "std_kl", "learning_rate"):
            check_schedule(f"alpha_kwargs: {name}", getattr(self, name))
        check_integer("alpha_kwargs: n_iterations", self.n_iterations, 1)
        check_number("alpha_kwargs: factor", self.factor, 1, open_low=True)
        check_number("alpha_kwargs: max_alpha", self.max_alpha, open_low=True)
        check_number("alpha_kwargs: bias_z", self.bias_z)


@dataclass
class AgreementController(AlphaController):
    """
    Control by agreement: α rises while the advantages agree that a step along the gradients gains, else it falls.

    A batch measures the agreement (:class:`~sb3_gippo.gippo.signal.Signal`) with an error, so it is tracked by a scalar Kalman
    filter (a random walk with step :attr:`DRIFT`).

    :param settings: hyper-parameters
    :param alpha: the present α, the length of the α-step as a share of the trust region's
    :param slope: what is believed of the slope
    :param variance: how uncertain that is
    """

    DRIFT: ClassVar[float] = 0.03
    MIN_SLOPE: ClassVar[float] = 0.1
    """with a smaller one a step along the gradients gains next to nothing"""
    MIN_ALPHA: ClassVar[float] = 0.05
    """a smaller α is 0, no α-step at all: even small steps add up where gradients mislead for good; α returns at this value"""

    settings: TrustRegionSettings
    alpha: float
    slope: float = 0.5
    variance: float = 0.25

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


def kl_parts(old: Gaussian, new: Gaussian) -> tuple[th.Tensor, th.Tensor]:
    """
    KL(old ‖ new) of diagonal Gaussians in its two parts, averaged over the batch: what a move of the mean alone and what a
    move of the standard deviation alone would make it.

    :param old: mean and standard deviation, (n, action_dim) each
    :param new: the same
    :return: ½ Σ ((μ - μ')/σ)² and Σ log(σ'/σ) + ½ (σ/σ')² - ½, scalars
    """
    (old_mean, old_std), (mean, std) = old, new
    of_mean = 0.5 * ((mean - old_mean) / old_std).square().sum(1).mean()
    shift = std.log() - old_std.log()
    # expm1 and the clamp: what rounding makes of no move at all must be 0, not negative.
    of_std = (shift + 0.5 * th.expm1(-2 * shift)).sum(1).mean().clamp(min=0.0)
    return of_mean, of_std


@dataclass
class AdaptiveRate:
    """
    A learning rate that follows a KL budget, as the adaptive schedule of rl_games does.

    :ivar scale: what the nominal rate is multiplied by
    """

    DOWN: ClassVar[float] = 1.5
    UP: ClassVar[float] = 1.2
    MIN_SCALE: ClassVar[float] = 1e-9
    MAX_SCALE: ClassVar[float] = 100.0

    scale: float = field(default=1.0)

    def update(self, kl: float, budget: float) -> None:
        """
        :param kl: of the step as the optimizer made it, before it was pulled back
        :param budget: the KL divergence it should have
        """
        if not kl <= 1.5 * budget:  # NaN included
            self.scale = max(self.scale / self.DOWN, self.MIN_SCALE)
        elif kl < budget / 1.5:
            self.scale = min(self.scale * self.UP, self.MAX_SCALE)


def pull_back(
    gaussian: Callable[[], Gaussian],
    old: Gaussian,
    groups: Sequence[Sequence[nn.Parameter]],
    before: Sequence[Sequence[th.Tensor]],
    budgets: Sequence[float],
    coupled: bool = False,
) -> tuple[float, float]:
    """
    Shrink a step towards where it started until it respects its budgets.

    :param gaussian: the policy as it is, on the batch
    :param old: what it was
    :param groups: the parameters of the mean, and of σ
    :param before: their values before the step
    :param budgets: KL divergence allowed to each
    :param coupled: whether the parameters of the mean move σ as well: they then answer for both budgets
    :return: the two parts of the KL divergence before anything was pulled back
    """
    attempts = 20
    made: tuple[float, float] | None = None
    with th.no_grad():
        for attempt in range(attempts):
            parts = tuple(part.item() for part in kl_parts(old, gaussian()))
            made = made or (parts[0], parts[1])
            shares = [
                # A KL divergence is quadratic in a small step; what is not finite or does not obey goes all the way back.
                1.0
                if kl <= budget * (1 + 1e-3)
                else 0.95 * math.sqrt(budget / kl)
                if math.isfinite(kl) and attempt < attempts - 2
                else 0.0
                for kl, budget in zip(parts, budgets)
            ]
            if min(shares) == 1:
                break
            if coupled and len(shares) > 1:
                shares[0] = min(shares)
            for share, group, values in zip(shares, groups, before):
                if share == 1:
                    continue
                for parameter, value in zip(group, values):
                    parameter.copy_(value.lerp(parameter, share) if share > 0 else value)
    assert made is not None
    return made


def natural_displacement(whitened: th.Tensor, kl: float) -> th.Tensor:
    """
    The α-policy's displacement of each sample's action in units of σ, σ g scaled so that as a shift of the means it would have
    the KL divergence ``kl``: the α-step's length is a distance between policies, whatever the rewards' unit.

    :param whitened: σ g (n, action_dim)
    :param kl: not negative
    :return: (n, action_dim)
    """
    rms = in_double(whitened).square().sum(1).mean().sqrt().item()
    return whitened * (math.sqrt(2 * kl) / rms) if rms > 0 else th.zeros_like(whitened)


def std_freedom(distance: float) -> float:
    """
    How far σ may follow its gradient: fully while the mean is within :data:`ARRIVED` of its optimum, not at all beyond twice
    that.

    :param distance: of mean and optimum, in σ
    :return: 2 - distance / :data:`ARRIVED`, between 0 and 1
    """
    return min(max(2 - distance / ARRIVED, 0.0), 1.0)


class TrustRegionStep(AlphaStep):
    """
    The displacement σ g of each sample's action, in units of σ, is scaled to the KL divergence α² f · ``kl``. It is regressed
    on the noise: log σ takes the slope, in closed form, ½ j E[ε · displacement] (½ is the ratio of the Fisher informations of
    mean and log σ), and the mean what is left without it (for a quadratic advantage free of the noise), by a few steps of an
    Adam whose moments persist. Both stay within their budgets. f and j are the shares of signal in what mean and σ follow
    (:class:`~sb3_gippo.gippo.signal.Signal`): gradients that are mostly noise make a short step.

    A budget is spent once: the α-step takes the share α² f of it (σ: α² j), and the PPO step what that leaves, at least
    :attr:`PPO_SHARE`. It is distances that add up, not divergences: where both steps go the same way, their sum has the KL
    divergence (α + √(1 - α²))² ≤ 2 budgets, where they are orthogonal just the budget.

    σ may follow its gradient only as far as the mean has arrived (:func:`std_freedom`): shrinking around a mean that is still
    on its way, it would bound that mean's steps ever more tightly.

    :ivar fit_rate: of the fit
    :ivar ppo_mean_rate: of the PPO step for the parameters of the mean
    :ivar ppo_std_rate: the same for those of σ
    :ivar std_freedom: running mean of how free σ is, 0 (held) to 1
    """

    Settings = TrustRegionSettings
    limits_gradients = True
    MEMORY: ClassVar[float] = 0.8
    PPO_SHARE: ClassVar[float] = 0.05
    """of the budgets, left to the PPO step however good the gradients"""

    settings: TrustRegionSettings
    controller: AgreementController

    def __init__(self, actor: Actor, alpha: float, settings: TrustRegionSettings, max_grad_norm: float):
        super().__init__(actor, alpha, settings, max_grad_norm)
        self.controller = AgreementController(settings, alpha)
        # The published moments, (0.7, 0.95), average three batches; environments in phase need the memory of an episode.
        self.optimizer = adam(actor.mean, lr=1e-3, betas=(0.9, 0.99))
        self.rate, self.kl, self.std_kl = (
            schedule_of(f"alpha_kwargs: {name}", getattr(settings, name)) for name in ("learning_rate", "kl", "std_kl")
        )
        self.fit_rate, self.ppo_mean_rate, self.ppo_std_rate = AdaptiveRate(), AdaptiveRate(), AdaptiveRate()
        self.std_freedom = 1.0

    def budgets(self, progress_remaining: float) -> tuple[float, float]:
        """:return: KL divergence that mean and σ may move in an iteration"""
        return self.kl(progress_remaining), self.std_kl(progress_remaining)

    def trusted_std_freedom(self, spent: float) -> float:
        """:return: :attr:`std_freedom` as far as the gradients that tell it are trusted: 1 where no α-step was made"""
        return 1 - min(math.sqrt(spent), 1.0) * (1 - self.std_freedom)

    def make(self, batch: GradientBatch, old: Gaussian, signal: Signal, progress_remaining: float) -> Made:
        self.std_freedom = self.MEMORY * self.std_freedom + (1 - self.MEMORY) * std_freedom(signal.distance)
        self.log = {"train/std_freedom": self.std_freedom}
        kl, std_kl = self.budgets(progress_remaining)
        spent = Spent(*(min(self.alpha, 1.0) ** 2 * trust for trust in (signal.mean_trust, signal.std_trust)))
        kl, std_kl = self.alpha**2 * signal.mean_trust * kl, self.alpha**2 * signal.std_trust * std_kl
        if kl == 0 or not trainable([*self.actor.mean, *self.actor.std]):
            return Made(1.0, Spent())  # no step; the gradients are judged all the same
        ratio = self._fit(batch, old, signal, (kl, std_kl), progress_remaining)
        return Made(ratio, Spent() if ratio is None else spent)

    def _fit(
        self,
        batch: GradientBatch,
        old: Gaussian,
        signal: Signal,
        budgets: tuple[float, float],
        progress_remaining: float,
    ) -> float | None:
        """
        :param budgets: KL divergence allowed to mean and σ
        :return: the mean's final loss over its initial one; ``None`` if the step was undone because it was not finite
        """
        displacement = natural_displacement(signal.whitened, budgets[0])
        actor = self.actor
        before_mean, before_std = copies(actor.mean), copies(actor.std)
        slope = (batch.noise * displacement).mean(0)
        ratio: float | None = 1.0
        if self.optimizer is not None and trainable(actor.mean):
            ratio = self._fit_mean(batch, old, displacement - slope * batch.noise, budgets, progress_remaining)
        if ratio is None or actor.log_std is None:
            return ratio
        shift = 0.5 * signal.std_trust * slope
        shift = shift.where(shift > 0, self.trusted_std_freedom(self.alpha**2) * shift)
        squared = shift.square().sum().item()
        shift = shift * min(1.0, math.sqrt(budgets[1] / squared)) if squared > 0 else shift
        with th.no_grad():
            actor.log_std.add_(shift)
        actor.keep_std_in_bounds()
        if actor.std_follows_mean:
            # The mean's step has moved a state-dependent σ as well, in the same budget.
            groups, before = [actor.mean, actor.std], [before_mean, before_std]
            pull_back(lambda: actor.gaussian(batch.observations), old, groups, before, budgets, coupled=True)
        return ratio

    def _fit_mean(
        self,
        batch: GradientBatch,
        old: Gaussian,
        displacement: th.Tensor,
        budgets: tuple[float, float],
        progress_remaining: float,
    ) -> float | None:
        actor, optimizer, rate = self.actor, self.optimizer, self.fit_rate
        assert optimizer is not None
        learning_rate = self.rate(progress_remaining) * rate.scale
        self.log["train/alpha_learning_rate"] = learning_rate
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        before = snapshot(actor.mean, optimizer)
        initial, loss, kl = math.nan, math.nan, 0.0
        for iteration in range(self.settings.n_iterations + 1):
            moved = (actor.gaussian(batch.observations)[0] - old[0]) / old[1]
            objective = (moved - displacement).square().sum(1).mean()
            loss, kl = objective.item(), 0.5 * moved.detach().square().sum(1).mean().item()
            initial = loss if iteration == 0 else initial
            if iteration == self.settings.n_iterations or kl > 0.8 * budgets[0]:
                break
            optimizer.zero_grad()
            objective.backward()
            nn.utils.clip_grad_norm_(actor.mean, self.max_grad_norm)
            optimizer.step()
        optimizer.zero_grad()
        ratio = loss / initial if initial > 0 else math.nan
        if not math.isfinite(ratio) or not nn.utils.get_total_norm(actor.mean).isfinite():
            restore(actor.mean, optimizer, before)
            rate.update(math.inf, budgets[0])
            return None
        if kl > budgets[0]:
            pull_back(lambda: actor.gaussian(batch.observations), old, [actor.mean], [before[0]], budgets[:1])
        # A fit that has all but reached its target needs no larger rate to use up the budget.
        if kl > budgets[0] or ratio > 0.3:
            rate.update(kl, budgets[0])
        return ratio

    def ppo_scales(self) -> list[tuple[list[nn.Parameter], float]]:
        rates = (self.ppo_mean_rate, self.ppo_std_rate)
        return [(group, rate.scale) for group, rate in zip((self.actor.moves_mean, self.actor.moves_std), rates)]

    def ppo_budgets(self, spent: Spent, progress_remaining: float) -> tuple[float, float]:
        """
        :param spent: share of the budgets that the α-step of this iteration has used up
        :param progress_remaining: from 1 to 0
        :return: what the PPO step may use of them, for mean and σ
        """
        kl, std_kl = self.budgets(progress_remaining)
        of_mean, of_std = (max(self.PPO_SHARE, 1 - share) for share in spent)
        return of_mean * kl, of_std * self.trusted_std_freedom(spent.mean) ** 2 * std_kl

    def bound_ppo_step(
        self, batch: GradientBatch, start: Gaussian, before: list[list[th.Tensor]], spent: Spent, progress_remaining: float
    ) -> None:
        actor, budgets = self.actor, self.ppo_budgets(spent, progress_remaining)
        groups = [actor.moves_mean, actor.moves_std]
        made = pull_back(
            lambda: actor.gaussian(batch.observations), start, groups, before, budgets, coupled=actor.std_follows_mean
        )
        for rate, kl, budget in zip((self.ppo_mean_rate, self.ppo_std_rate), made, budgets):
            rate.update(kl, budget)
        self.log["train/ppo_kl_mean"], self.log["train/ppo_kl_std"] = made

    def state_dict(self) -> dict[str, Any]:
        rates = [float(rate.scale) for rate in (self.fit_rate, self.ppo_mean_rate, self.ppo_std_rate)]
        return {**super().state_dict(), "rates": rates, "std_freedom": float(self.std_freedom)}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        for rate, scale in zip((self.fit_rate, self.ppo_mean_rate, self.ppo_std_rate), state["rates"]):
            rate.scale = scale
        self.std_freedom = state["std_freedom"]

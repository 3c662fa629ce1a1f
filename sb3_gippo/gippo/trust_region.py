"""Steps of a Gaussian policy that stay within a KL divergence, mean and standard deviation apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_gippo.common.optimizers import restore, snapshot
from sb3_gippo.gippo.fit import clamp_log_std
from sb3_gippo.on_policy.actor import ActorParameters

ROW_LIMIT = 3.0
"""longest row of the action gradients, in mean rows"""

ARRIVED = 1 / 3
"""distance of a mean from its optimum, in σ, as far as its last layer explains it (the real one is longer: measured, σ is too
small for the mean's last steps if it may shrink within 1 σ)"""

Gaussian = tuple[th.Tensor, th.Tensor]
"""mean and standard deviation, (n, action_dim) each"""


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

    :ivar scale: what the nominal rate is multiplied by, at most 1
    """

    DOWN: ClassVar[float] = 1.5
    UP: ClassVar[float] = 1.2
    MIN_SCALE: ClassVar[float] = 1e-9

    scale: float = field(default=1.0)

    def update(self, kl: float, budget: float) -> None:
        """
        :param kl: of the step as the optimizer made it, before it was pulled back
        :param budget: the KL divergence it should have
        """
        if not kl <= 1.5 * budget:  # NaN included
            self.scale = max(self.scale / self.DOWN, self.MIN_SCALE)
        elif kl < budget / 1.5:
            self.scale = min(self.scale * self.UP, 1.0)


@dataclass
class TrustRegion:
    """
    The KL budgets of an iteration and the learning rates that follow them. Its state is saved with the model.

    Good gradients leave PPO a small share of the budget for the mean; where they are not trusted (α small), PPO has it all.

    σ may follow its gradient only as far as the mean has arrived (:func:`std_freedom`): shrinking around a mean that is still
    on its way, it would bound that mean's steps ever more tightly.

    :ivar fit: rate of the α-policy's fit
    :ivar ppo_mean: rate of the PPO step for the parameters of the mean
    :ivar ppo_std: the same for those of σ
    :ivar std_freedom: running mean of how free σ is, 0 (held) to 1
    """

    MEMORY: ClassVar[float] = 0.8

    fit: AdaptiveRate = field(default_factory=AdaptiveRate)
    ppo_mean: AdaptiveRate = field(default_factory=AdaptiveRate)
    ppo_std: AdaptiveRate = field(default_factory=AdaptiveRate)
    std_freedom: float = field(default=1.0)

    def update_std_freedom(self, freedom: float) -> None:
        """:param freedom: of this batch, :func:`std_freedom`"""
        self.std_freedom = self.MEMORY * self.std_freedom + (1 - self.MEMORY) * freedom

    def ppo_budgets(self, kl: float, std_kl: float, alpha: float, smallest: float) -> tuple[float, float]:
        """
        :param kl: whole budget for the mean
        :param std_kl: whole budget for σ
        :param alpha: share of the trust region's radius the α-step used
        :param smallest: share of them that remains to the PPO step for any α
        :return: what the PPO step may use of them
        """
        share = max(smallest, 1 - alpha**2)
        return share * kl, share * self.trusted_std_freedom(alpha) ** 2 * std_kl

    def trusted_std_freedom(self, alpha: float) -> float:
        """:return: :attr:`std_freedom` as far as the gradients that tell it are trusted: 1 for α = 0"""
        return 1 - min(alpha, 1.0) * (1 - self.std_freedom)


def pull_back(
    gaussian: Callable[[], Gaussian],
    old: Gaussian,
    groups: Sequence[Sequence[nn.Parameter]],
    before: Sequence[Sequence[th.Tensor]],
    budgets: Sequence[float],
) -> tuple[float, float]:
    """
    Shrink a step towards where it started until it respects its budgets.

    :param gaussian: the policy as it is, on the batch
    :param old: what it was
    :param groups: the parameters of the mean, and of σ
    :param before: their values before the step
    :param budgets: KL divergence allowed to each
    :return: the two parts of the KL divergence before anything was pulled back
    """
    attempts = 20
    made: tuple[float, float] | None = None
    with th.no_grad():
        for attempt in range(attempts):
            parts = tuple(part.item() for part in kl_parts(old, gaussian()))
            made = made or (parts[0], parts[1])
            within = True
            for kl, budget, group, values in zip(parts, budgets, groups, before):
                if kl <= budget * (1 + 1e-3):
                    continue
                within = False
                # A KL divergence is quadratic in a small step; what is not finite or does not obey goes all the way back.
                obeys = math.isfinite(kl) and attempt < attempts - 2
                share = 0.95 * math.sqrt(budget / kl) if obeys else 0.0
                for parameter, value in zip(group, values):
                    parameter.copy_(value + share * (parameter - value) if share > 0 else value)
            if within:
                break
    assert made is not None
    return made


def natural_displacement(whitened: th.Tensor, kl: float) -> th.Tensor:
    """
    The α-policy's displacement of each sample's action in units of σ, σ g scaled so that as a shift of the means it would have
    the KL divergence ``kl``: the α-step's length is a distance between policies, whatever the rewards' unit.

    Rows longer than :data:`ROW_LIMIT` times the mean row are shortened to that.

    :param whitened: σ g (n, action_dim)
    :param kl: not negative
    :return: (n, action_dim)
    """
    norm = whitened.norm(dim=1, keepdim=True)
    limited = whitened * (ROW_LIMIT * norm.mean() / norm.clamp(min=1e-30)).clamp(max=1.0)
    rms = limited.double().square().sum(1).mean().sqrt().item()
    return limited * (math.sqrt(2 * kl) / rms) if rms > 0 else th.zeros_like(limited)


def fit_displacement(
    policy: ActorCriticPolicy,
    actor: ActorParameters,
    gaussian: Callable[[], Gaussian],
    old: Gaussian,
    noise: th.Tensor,
    displacement: th.Tensor,
    budgets: tuple[float, float],
    rate: AdaptiveRate,
    learning_rate: float,
    n_iterations: int,
    max_grad_norm: float,
    freedom: float,
) -> float | None:
    """
    Move the actor by a displacement of its actions, a regression of it on the noise: log σ takes the slope, in closed form,
    ½ E[ε · displacement] (½ is the ratio of the Fisher informations of mean and log σ), and the mean what is left without
    it (for a quadratic advantage free of the noise), by a few steps of an Adam whose moments persist. Both stay within their
    budgets.

    :param policy: with its ``alpha_optimizer`` over the mean's parameters
    :param actor: its parameters
    :param gaussian: the policy as it is, on the batch
    :param old: what it was
    :param noise: ε (n, action_dim)
    :param displacement: in units of σ̄ (n, action_dim)
    :param budgets: KL divergence allowed to mean and σ
    :param rate: follows the mean's budget
    :param learning_rate: nominal
    :param n_iterations: Adam steps
    :param max_grad_norm: gradient clipping
    :param freedom: how far σ may shrink, 0 to 1
    :return: final loss over initial loss; ``None`` if the step was undone because it was not finite
    """
    optimizer: th.optim.Optimizer = policy.alpha_optimizer  # type: ignore[assignment]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * rate.scale
    parameters = [*actor.mean, *actor.std]
    before = snapshot(parameters, optimizer)
    slope = (noise * displacement).mean(0)
    mean_displacement = displacement - slope * noise
    initial, loss, kl = math.nan, math.nan, 0.0
    for iteration in range(n_iterations + 1):
        moved = (gaussian()[0] - old[0]) / old[1]
        objective = (moved - mean_displacement).square().sum(1).mean()
        loss, kl = objective.item(), 0.5 * moved.detach().square().sum(1).mean().item()
        initial = loss if iteration == 0 else initial
        if iteration == n_iterations or kl > 0.8 * budgets[0]:
            break
        optimizer.zero_grad()
        objective.backward()
        nn.utils.clip_grad_norm_(actor.mean, max_grad_norm)
        optimizer.step()
    optimizer.zero_grad()
    ratio = loss / initial if initial > 0 else math.nan
    if not math.isfinite(ratio) or not nn.utils.get_total_norm(actor.mean).isfinite():
        restore(parameters, optimizer, before)
        rate.update(math.inf, budgets[0])
        return None
    if kl > budgets[0]:
        pull_back(gaussian, old, [actor.mean], [before[0][: len(actor.mean)]], budgets[:1])
    # A fit that has all but reached its target needs no larger rate to use up the budget.
    if kl > budgets[0] or ratio > 0.3:
        rate.update(kl, budgets[0])
    shift = 0.5 * slope
    shift = shift.where(shift > 0, freedom * shift)
    squared = shift.square().sum().item()
    shift_log_std(policy, shift * min(1.0, math.sqrt(budgets[1] / squared)) if squared > 0 else shift)
    return ratio


def explained_power(features: th.Tensor, targets: th.Tensor) -> float:
    """
    Mean square of what a linear regression on the features explains of the targets, less what it would explain of noise
    (the correction of the adjusted R²).

    :param features: (n, p); a constant is added to them
    :param targets: (n, d)
    :return: per row, summed over d; not negative
    """
    n, targets = len(features), targets.double()
    design = th.cat([features, features.new_ones(n, 1)], dim=1).double()
    eigenvalues, vectors = th.linalg.eigh(design.T @ design)
    kept = eigenvalues > 1e-6 * eigenvalues[-1]
    rank = int(kept.sum())
    basis = design @ vectors[:, kept] / eigenvalues[kept].sqrt()
    total = targets.square().sum().item()
    explained = (basis.T @ targets).square().sum().item()
    if rank < n:
        explained -= rank / (n - rank) * (total - explained)
    return max(0.0, explained / n)


def std_freedom(features: th.Tensor, noise: th.Tensor, whitened: th.Tensor) -> float:
    """
    How far σ may follow its gradient: fully while the mean is within :data:`ARRIVED` of its optimum, not at all beyond twice
    that.

    For a quadratic advantage with its optimum at μ* the whitened gradient σ g is c (ε + (μ - μ*)/σ) with the whitened
    curvature c: its regression on ε gives c, and what the features explain of the rest gives the distance.

    :param features: the actor's last layer (n, p), what the mean can follow
    :param noise: ε (n, action_dim)
    :param whitened: σ g (n, action_dim)
    :return: 2 - distance / :data:`ARRIVED`, between 0 and 1
    """
    curvature = (whitened * noise).mean(0)
    power = curvature.double().square().sum().item()
    if not (math.isfinite(power) and power > 0):
        return 0.0
    distance = math.sqrt(explained_power(features, whitened - curvature * noise) / power)
    return min(max(2 - distance / ARRIVED, 0.0), 1.0)


def shift_log_std(policy: ActorCriticPolicy, shift: th.Tensor) -> None:
    """Add ``shift`` (action_dim,) to log σ, of every state alike."""
    with th.no_grad():
        policy.log_std.copy_(policy.log_std + shift)
    clamp_log_std(policy)

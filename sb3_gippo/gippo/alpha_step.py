"""The α-step: what its two solvers have in common, and what a batch says of a step that was made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch as th
from torch import nn

from sb3_gippo.common.optimizers import load_state
from sb3_gippo.gippo.signal import Signal
from sb3_gippo.on_policy.actor import Actor
from sb3_gippo.rollout.action_gradients import Gaussian
from sb3_gippo.rollout.buffer import GradientBatch

TrainPPO = Callable[[Sequence[tuple[Sequence[nn.Parameter], float]], list[float] | None], None]
"""makes PPO's update: takes parameters and what their learning rate is multiplied by, and a list, or ``None``, to which PPO's
policy loss in each epoch is added"""

MAX_LOG_RATIO = 4.0
"""where |log π̄ - log π_α| is larger, the virtual policy is π_α alone"""


@dataclass
class Diagnostics:
    """
    What the batch says of an α-step that was made.

    :param std_ratio_min: smallest σ_α / σ̄, multiplied over dimensions, over the batch: det(I + α ∇²A) as the fitted policy
        realises it, where the step's displacement is α g
    :param std_ratio_mean: its mean
    :param std_ratio_max: its largest
    :param improvement: mean of Â·(ρ - 1), the estimated gain, with ρ = π_α/π̄
    :param improvement_z: that mean in units of its standard error
    :param gain: ΣÂ·(ρ - 1), the advantages as they are
    :param out_of_range_ratio: share of samples with ρ outside [1 - clip_range, 1 + clip_range]
    :param agreement: how far the advantages agree with the gradients, see :class:`~sb3_gippo.gippo.signal.Signal`
    :param agreement_error: its standard error
    """

    std_ratio_min: float
    std_ratio_mean: float
    std_ratio_max: float
    improvement: float
    improvement_z: float
    gain: float
    out_of_range_ratio: float
    agreement: float
    agreement_error: float


class Spent(NamedTuple):
    """Shares of an iteration's KL budgets that its α-step has used up, 0 to 1; 0 where nothing was moved."""

    mean: float = 0.0
    std: float = 0.0


class Made(NamedTuple):
    """What an α-step did."""

    loss_ratio: float | None
    """the fit's final loss over its initial one, 1 if no step was wanted; ``None`` if it failed and was undone"""
    spent: Spent


class AlphaController(ABC):
    """Control of α; a dataclass whose numbers are saved with the model."""

    alpha: float

    @abstractmethod
    def update(self, diagnostics: Diagnostics | None) -> str:
        """
        Move α by what the α-step showed.

        :param diagnostics: ``None`` if the fit failed
        :return: why α moved
        """


class AlphaStep(ABC):
    """
    One way to make the α-step, with its settings, its control of α, its optimizer and its adaptive rates.

    :param actor: whose policy is moved
    :param alpha: initial α
    :param settings: an instance of :attr:`Settings`
    :param max_grad_norm: gradient clipping
    :ivar log: what the last iteration showed, by the key it is logged under
    """

    Settings: ClassVar[type]
    """the dataclass of what ``alpha_kwargs`` may hold"""
    limits_gradients: ClassVar[bool]
    """whether the sweep is to shorten what claims too much, see :func:`~sb3_gippo.rollout.adjoint.action_gradients`"""
    controller: AlphaController
    optimizer: th.optim.Optimizer | None

    def __init__(self, actor: Actor, alpha: float, settings: Any, max_grad_norm: float):
        self.actor = actor
        self.initial_alpha = float(alpha)
        self.settings = settings
        self.max_grad_norm = max_grad_norm
        self.log: dict[str, Any] = {}

    @property
    def alpha(self) -> float:
        """:return: the present α"""
        return self.controller.alpha

    @abstractmethod
    def make(self, batch: GradientBatch, old: Gaussian, signal: Signal, progress_remaining: float) -> Made:
        """
        Move the policy. A step that fails is undone.

        :param batch: the window
        :param old: the policy as it is, on the batch
        :param signal: what the batch's gradients say
        :param progress_remaining: from 1 to 0
        :return: what was done
        """

    def no_gradients(self) -> str:
        """
        Lower α after a window in which no gradient was usable.

        :return: why α moved
        """
        self.controller.alpha /= self.settings.factor
        return "no_gradients"

    def ppo_scales(self) -> list[tuple[list[nn.Parameter], float]]:
        """:return: parameters, and what the PPO step's learning rate is multiplied by for them"""
        return []

    def virtual_log_prob(self, old: th.Tensor, alpha: th.Tensor) -> th.Tensor:
        """See :func:`virtual_log_prob`."""
        return virtual_log_prob(old, alpha)

    def make_ppo_step(self, train: TrainPPO, batch: GradientBatch, before: Sequence[Sequence[th.Tensor]]) -> None:
        """
        Make PPO's update, once or several times.

        :param train: makes it
        :param batch: the window
        :param before: the values of ``actor.moves_mean`` and ``actor.moves_std``
        """
        train(self.ppo_scales(), None)

    def bound_ppo_step(  # noqa: B027 (not every solver bounds it)
        self, batch: GradientBatch, start: Gaussian, before: list[list[th.Tensor]], spent: Spent, progress_remaining: float
    ) -> None:
        """
        Take the PPO step back into what the α-step has left of the iteration's budgets.

        :param batch: the window
        :param start: the policy when the step began, on the batch
        :param before: the values of ``actor.moves_mean`` and ``actor.moves_std`` then
        :param spent: what the α-step of this iteration reports
        :param progress_remaining: from 1 to 0
        """

    def state_dict(self) -> dict[str, Any]:
        """:return: what :meth:`load_state_dict` takes, as tensors and plain values"""
        numbers = {name: float(value) for name, value in vars(self.controller).items() if name != "settings"}
        return {
            "initial_alpha": self.initial_alpha,
            "controller": numbers,
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: of :meth:`state_dict`; that of a run which began with another α is left aside"""
        if state["initial_alpha"] == self.initial_alpha:
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        load_state(self.optimizer, state["optimizer"])
        vars(self.controller).update(state["controller"])
        self.controller.alpha = min(self.alpha, self.settings.max_alpha)


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
    signal: Signal,
    log_probs: tuple[th.Tensor, th.Tensor],
    stds: tuple[th.Tensor, th.Tensor],
    clip_range: float,
) -> Diagnostics:
    """
    Judge an α-step on the batch it was made from; rows of all arguments belong together.

    The advantages are centred, but for the ``gain``: E[ρ - 1] = 0 makes that free, and less noisy.

    :param advantages: Â (n,)
    :param signal: what the batch's gradients say
    :param log_probs: log π̄ and log π_α (n,)
    :param stds: σ̄ and σ_α (n, action_dim)
    :param clip_range: PPO's
    """
    std_ratio = (stds[1].log() - stds[0].log()).sum(1).exp()
    ratio = (log_probs[1] - log_probs[0]).clamp(-16, 16).exp()
    gain = (advantages - advantages.mean()) * (ratio - 1)
    standard_error = gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
    improvement = gain.mean().item()
    return Diagnostics(
        std_ratio.min().item(),
        std_ratio.mean().item(),
        std_ratio.max().item(),
        improvement,
        improvement / standard_error if standard_error > 0 else 0.0,
        (advantages * (ratio - 1)).sum().item(),
        ((ratio - 1).abs() > clip_range).float().mean().item(),
        signal.agreement,
        signal.agreement_error,
    )

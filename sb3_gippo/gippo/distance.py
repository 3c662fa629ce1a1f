"""How far a PPO step goes, measured from where it starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

from sb3_gippo.rollout.buffer import GradientRolloutBuffer

if TYPE_CHECKING:
    from stable_baselines3 import PPO


@contextmanager
def distance_from(model: PPO, start: th.Tensor, losses: list[float] | None = None) -> Iterator[None]:
    """
    Within this context ``PPO.train`` obeys ``target_kl``, and logs ``train/approx_kl`` and ``train/clip_fraction``, by ratios
    to the policy the step starts from. Its loss keeps the ratios to the virtual policy π_h, from which the α-policy is far by
    design: measured by those, the step would end before it begins.

    :param model: with a :class:`~sb3_gippo.rollout.buffer.GradientRolloutBuffer`
    :param start: log-probabilities of the window's actions (n,) when the step starts, in the order of ``gradient_batch``
    :param losses: to it PPO's policy loss is added, of each epoch, as the steps found it; ``None`` if nobody asks
    """
    policy, buffer, target_kl = model.policy, model.rollout_buffer, model.target_kl
    assert isinstance(buffer, GradientRolloutBuffer)
    clip_range: Any = model.clip_range
    clip = clip_range(model._current_progress_remaining)
    evaluate = policy.evaluate_actions
    kls: list[float] = []
    clipped: list[float] = []
    surrogates: list[float] = []

    def measured(*args: Any) -> Any:
        predicted, log_prob, entropy = evaluate(*args)
        with th.no_grad():
            rows = th.as_tensor(buffer.minibatch, device=start.device)
            log_ratio = log_prob - start[rows]
            change = th.expm1(log_ratio)
            kls.append((change - log_ratio).mean().item())
            clipped.append((change.abs() > clip).float().mean().item())
            if losses is not None:
                advantages = normalized(buffer.advantages) if model.normalize_advantage else buffer.advantages
                virtual = buffer.log_probs[buffer.minibatch].flatten()
                surrogates.append(surrogate_loss(advantages[buffer.minibatch].flatten(), log_prob, virtual, clip))
        if target_kl is not None:
            # PPO compares its own number, which is not negative, with this bound: passed always, or never.
            model.target_kl = float("inf") if kls[-1] <= 1.5 * target_kl else -1.0
        return predicted, log_prob, entropy

    policy.evaluate_actions = measured  # type: ignore[assignment, method-assign]
    try:
        yield
        per_epoch = -(-len(start) // model.batch_size)
        last_epoch = kls[(len(kls) - 1) // per_epoch * per_epoch :]
        if losses is not None:
            losses += [float(np.mean(surrogates[i : i + per_epoch])) for i in range(0, len(surrogates), per_epoch)]
        model.logger.record("train/approx_kl", np.mean(last_epoch))
        model.logger.record("train/clip_fraction", np.mean(clipped))
    finally:
        del policy.evaluate_actions
        model.target_kl = target_kl


def normalized(advantages: np.ndarray) -> np.ndarray:
    """:return: with mean 0 and standard deviation 1, over the whole window, that its minibatches can be compared"""
    return (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)


def surrogate_loss(advantages: np.ndarray, log_prob: th.Tensor, virtual: np.ndarray, clip: float) -> float:
    """
    :param advantages: Â of a minibatch (n,)
    :param log_prob: log π (n,)
    :param virtual: log π_h (n,)
    :param clip: PPO's clip range
    :return: PPO's policy loss on it
    """
    weights = th.as_tensor(advantages).to(log_prob)
    ratio = (log_prob - th.as_tensor(virtual).to(log_prob)).exp()
    return -th.min(weights * ratio, weights * ratio.clamp(1 - clip, 1 + clip)).mean().item()

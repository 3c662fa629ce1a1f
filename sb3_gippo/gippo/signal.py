"""What the action gradients of a batch say, how much of it is signal, and whether the advantages agree."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch as th

ROW_LIMIT = 3.0
"""longest row of the action gradients, in mean rows"""


class Signal(NamedTuple):
    """
    The action gradients of a batch in units of σ, taken apart: what mean and σ can follow, and how much of that is not noise.

    :param whitened: G, σ g with long rows shortened (n, action_dim)
    :param distance: how far the mean is from its optimum, in σ, if the advantage is quadratic: its whitened gradient is
        c (ε + (μ - μ*)/σ); infinite without a slope
    :param mean_trust: f, share of what the features explain of G - c ε that is signal, 0 to 1
    :param std_trust: j, the same of c, the slope of G over the noise ε: twice the direction of log σ
    :param agreement: slope of the advantages over what a step along both would gain, by the gradients; 1 for the gradients of
        a linear advantage, 0 for useless ones, negative for misleading ones; not a number where there is no signal
    :param agreement_error: its standard error
    """

    whitened: th.Tensor
    distance: float
    mean_trust: float
    std_trust: float
    agreement: float
    agreement_error: float


def in_double(tensor: th.Tensor) -> th.Tensor:
    """:return: a copy in float64 on the CPU: not every device has float64"""
    return tensor.detach().cpu().double()


def shortened(whitened: th.Tensor, limit: th.Tensor) -> th.Tensor:
    """
    :param whitened: rows (n, action_dim)
    :param limit: a scalar
    :return: the rows, those longer than the limit scaled down to it
    """
    return whitened * (limit / whitened.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)


def column_space(features: th.Tensor) -> th.Tensor:
    """
    :param features: (n, p); a constant is added to them
    :return: an orthonormal basis of what is linear in them (n, rank), in float64; of the n // 2 strongest directions only, for
        what explains nearly every row of a small batch explains its noise
    """
    n = len(features)
    design = in_double(th.cat([features, features.new_ones(n, 1)], dim=1))
    eigenvalues, vectors = th.linalg.eigh(design.T @ design)
    kept = eigenvalues > 1e-6 * eigenvalues[-1]
    kept[: max(len(kept) - n // 2, 0)] = False
    return design @ vectors[:, kept] / eigenvalues[kept].sqrt()


def read_signal(features: th.Tensor, noise: th.Tensor, whitened: th.Tensor, advantages: th.Tensor) -> Signal:
    """
    Take the gradients of a batch apart.

    Rows are shortened to the advantages' spread first (the noise of one action cannot explain more than all noise does), then
    to :data:`ROW_LIMIT` mean rows. c = E[ε G] is what σ follows; the mean follows D, the projection of G - c ε on the
    features. Of either, noise alone would make something: rank/(n - rank) times what the projection leaves, and the variance
    of ε G over n. What exceeds it is signal, as a share f of |D|² and j of |c|² (the shrinkage of James and Stein).

    A step along f D and ½ j c would gain f |D|² f + ½ j² |c|² by the gradients, and E[Â (f ε·D + ½ j (ε² - 1)·c)], the
    likelihood-ratio estimate, by the advantages: the agreement is their quotient. Compared along the step, and not sample by
    sample, gradients may be noise for every single sample and right on average, as chaotic dynamics have them.

    :param features: what the mean's last layer receives (n, p)
    :param noise: ε (n, action_dim)
    :param whitened: σ g (n, action_dim)
    :param advantages: Â (n,)
    :return: see :class:`Signal`
    """
    n = len(noise)
    whitened = shortened(whitened, advantages.std(unbiased=False))
    whitened = shortened(whitened, ROW_LIMIT * whitened.norm(dim=1).mean())
    rows, epsilon = in_double(whitened), in_double(noise)
    slope = (epsilon * rows).mean(0)
    basis = column_space(features)
    rest = rows - slope * epsilon
    direction = basis @ (basis.T @ rest)
    rank = basis.shape[1]
    explained, total = (x.square().sum().item() / n for x in (direction, rest))
    std_power = slope.square().sum().item()
    std_by_chance = ((epsilon * rows).var(0).sum() / n).item() if n > 1 else math.inf
    mean_trust = share_of_signal(explained, rank / (n - rank) * max(total - explained, 0.0))
    std_trust = share_of_signal(std_power, std_by_chance)
    distance = math.sqrt(mean_trust * explained / std_power) if std_power > 0 else math.inf
    predicted = mean_trust**2 * explained + 0.5 * std_trust**2 * std_power
    agreement = error = math.nan
    if predicted > 0:
        along = mean_trust * (epsilon * direction).sum(1) + 0.5 * std_trust * ((epsilon.square() - 1) * slope).sum(1)
        gain = in_double(advantages - advantages.mean()) * along
        agreement, error = (x.item() / predicted for x in (gain.mean(), gain.std() / math.sqrt(n)))
    return Signal(whitened, distance, mean_trust, std_trust, agreement, error)


def share_of_signal(power: float, by_chance: float) -> float:
    """:return: share of a power that is not chance, 0 to 1"""
    return max(0.0, 1 - by_chance / power) if power > 0 else 0.0

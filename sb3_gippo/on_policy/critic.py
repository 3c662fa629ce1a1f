"""The critic's own fit, on a memory of its last windows."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn


class CriticMemory:
    """
    Observations and returns of the last windows, to fit the critic on more than the present one: environments that start in
    phase show one part of the episode at a time, and a critic fitted to that alone forgets the others.

    :param n_windows: how many windows are kept
    """

    def __init__(self, n_windows: int):
        self.windows: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=n_windows)

    def add(self, observations: np.ndarray, returns: np.ndarray) -> None:
        """
        :param observations: (n, ...), as the policy saw them
        :param returns: (n,)
        """
        self.windows.append((observations.copy(), returns.copy()))

    def tensors(self, device: th.device) -> tuple[th.Tensor, th.Tensor]:
        """:return: all observations (N, ...) and returns (N,) that are kept"""
        observations, returns = (np.concatenate(arrays) for arrays in zip(*self.windows))
        return th.as_tensor(observations, device=device), th.as_tensor(returns, device=device)


def fit_critic(
    policy: ActorCriticPolicy,
    optimizer: th.optim.Optimizer,
    memory: CriticMemory,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    max_grad_norm: float,
) -> float:
    """
    Minibatch steps on the squared error of the values, rows drawn uniformly from the memory. A step whose gradient is not
    finite is left out.

    :param policy: whose values are fitted
    :param optimizer: over the parameters of the critic
    :param memory: observations and returns
    :param n_steps: one or more
    :param batch_size: rows of a minibatch
    :param learning_rate: of every step
    :param max_grad_norm: gradient clipping
    :return: the loss of the last minibatch
    """
    observations, returns = memory.tensors(policy.device)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    for _ in range(n_steps):
        rows = th.randint(len(returns), (batch_size,), device=policy.device)
        loss = (policy.predict_values(observations[rows]).flatten() - returns[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_grad_norm)
        if norm.isfinite():
            optimizer.step()
    optimizer.zero_grad()
    return loss.item()

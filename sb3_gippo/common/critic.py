"""A memory of the critic's last windows."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch as th


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

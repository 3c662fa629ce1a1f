"""When the episodes of a batch end by the clock, and how Gymnasium's vector environments tell of their ends."""

from __future__ import annotations

from typing import Any

import numpy as np


class Episodes:
    """
    The time limit of ``num_envs`` environments that reset in the step that ends their episode.

    :param num_envs: number of environments, n
    :param max_episode_steps: time limit; ``None`` for none
    :param stagger: cut every environment's first episode that lasts, at evenly spread fractions of the time limit, so that the
        environments run out of phase and every window shows all parts of an episode
    :raises ValueError: without at least one environment, for a time limit below one step, or for ``stagger`` without one
    """

    def __init__(self, num_envs: int, max_episode_steps: int | None, stagger: bool):
        if num_envs != int(num_envs) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, not {num_envs}.")
        if stagger and max_episode_steps is None:
            raise ValueError("stagger spreads the environments over the time limit: give max_episode_steps as well.")
        self.max_episode_steps = max_episode_steps
        self.stagger = stagger
        self.steps = np.zeros(num_envs, dtype=np.int64)
        self.head_start = np.zeros(num_envs, dtype=np.int64)
        """where the clock starts; not at 0 until a staggered environment has reached the time limit once"""

    @property
    def max_episode_steps(self) -> int | None:
        """:return: the time limit; ``None`` for none"""
        return self._max_episode_steps

    @max_episode_steps.setter
    def max_episode_steps(self, steps: int | None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1 (`None`: no time limit), not {steps}.")
        self._max_episode_steps = steps

    def begin(self) -> None:
        """Begin all episodes anew."""
        num_envs = len(self.steps)
        self.head_start[:] = np.arange(num_envs) * (self.max_episode_steps or 0) // num_envs if self.stagger else 0
        self.steps[:] = self.head_start

    def step(self, terminated: np.ndarray) -> np.ndarray:
        """
        Count a step; the clocks of what it ends start again.

        :param terminated: (n,) bools
        :return: truncated (n,) bools: out of time and not terminated
        """
        self.steps += 1
        if self.max_episode_steps is None:
            truncated = np.zeros_like(terminated)
        else:
            truncated = (self.steps >= self.max_episode_steps) & ~terminated
        self.head_start[truncated] = 0
        done = terminated | truncated
        self.steps[done] = self.head_start[done]
        return truncated


def final_infos(observations: np.ndarray, done: np.ndarray) -> dict[str, Any]:
    """
    :param observations: (n, ...), before any reset
    :param done: (n,) bools, whose episodes have ended
    :return: infos as Gymnasium's ``SyncVectorEnv`` has them: ``final_obs`` (n,) of objects, the observation before the reset
        or ``None``; ``final_info``, empty; and their masks ``_final_obs`` and ``_final_info``
    """
    final = np.full(len(done), None, dtype=object)
    for index, last in zip(np.flatnonzero(done), observations[done]):
        final[index] = last
    return {"final_obs": final, "_final_obs": done, "final_info": {}, "_final_info": done.copy()}

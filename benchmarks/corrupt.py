"""Gradients made worse on purpose, to see what an algorithm does with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_gippo.rollout.step_gradient import DenseStepGradient, StepGradient, offered_step_gradient


@dataclass(frozen=True)
class Corruption:
    """
    What is done to the derivatives by the action, in this order.

    :param scale: they are multiplied by it: -1 flips their sign, 0 removes them
    :param bias: added to them, in units of their root mean square over the batch
    :param noise: standard deviation of what is added to them, in the same units
    :param delay: they are those of the transition that many steps ago
    :param dimensions: of the action, to which ``scale``, ``bias`` and ``noise`` apply; ``None`` for all
    :raises ValueError: for a negative ``noise`` or ``delay``
    """

    scale: float = 1.0
    bias: float = 0.0
    noise: float = 0.0
    delay: int = 0
    dimensions: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.noise < 0 or self.delay < 0:
            raise ValueError(f"noise and delay must not be negative, not {self.noise} and {self.delay}.")

    def apply(self, action_bar: th.Tensor, generator: th.Generator) -> th.Tensor:
        """
        :param action_bar: (n_envs, m)
        :param generator: of the noise
        :return: the same, corrupted
        """
        unit = action_bar.square().mean().sqrt()
        random = th.randn(action_bar.shape, generator=generator, dtype=action_bar.dtype).to(action_bar.device)
        worse = self.scale * action_bar + unit * (self.bias + self.noise * random)
        if self.dimensions is None:
            return worse
        chosen = th.zeros(action_bar.shape[1], dtype=th.bool)
        chosen[list(self.dimensions)] = True
        return worse.where(chosen.to(action_bar.device), action_bar)


@dataclass
class CorruptedStepGradient:
    """A step gradient whose derivative by the action is corrupted; the values it names are the true ones."""

    source: StepGradient
    corruption: Corruption
    generator: th.Generator
    action: np.ndarray
    observation: np.ndarray
    reward: np.ndarray

    @property
    def state_size(self) -> int:
        return self.source.state_size

    def vjp(
        self, next_state_bar: th.Tensor | None, next_obs_bar: th.Tensor, reward_bar: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """See :class:`~sb3_gippo.rollout.step_gradient.StepGradient`."""
        state_bar, action_bar = self.source.vjp(next_state_bar, next_obs_bar, reward_bar)
        return state_bar, self.corruption.apply(action_bar, self.generator)


class CorruptGradients(VecEnvWrapper):
    """
    Corrupts the gradient channel of an SB3 VecEnv; all else passes through.

    :param venv: whose environments offer gradients
    :param seed: of the noise
    :param corruption: see :class:`Corruption`
    """

    def __init__(self, venv: VecEnv, seed: int = 0, **corruption: Any):
        super().__init__(venv)
        self.corruption = Corruption(**corruption)
        self.step_gradient: CorruptedStepGradient | None = None
        self._generator = th.Generator().manual_seed(seed)
        self._past: deque[StepGradient] = deque(maxlen=self.corruption.delay + 1)

    def reset(self) -> Any:
        self.step_gradient = None
        self._past.clear()
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        true = offered_step_gradient(self.venv)
        if true is None and any("grad" in info for info in infos):
            sizes = (int(np.prod(space.shape or ())) for space in (self.action_space, self.observation_space))
            true = DenseStepGradient.from_infos(infos, *sizes)
        self.step_gradient = None
        if true is not None:
            self._past.append(true)
            self.step_gradient = CorruptedStepGradient(
                self._past[0], self.corruption, self._generator, true.action, true.observation, true.reward
            )
        return observations, rewards, dones, infos

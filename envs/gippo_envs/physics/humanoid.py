"""The humanoid: two legs, two arms and a trunk in space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch as th

from gippo_envs.physics.ant import Spatial
from gippo_envs.physics.hopper import standing


@dataclass
class Humanoid(Spatial):
    """
    Run along x on two legs (after DiffRL's humanoid, on Gymnasium's model of 17 motors).

    State, observation and their parts up and heading: :class:`Spatial`. Reward

        ẋ + 0.1 up + heading + H - 0.002 |a|²,   D = clip(height - low - 0.1, -1, 0.1),   H = 10 D, or -200 D² where D < 0.

    Episodes end where the torso is below ``low``, and where a number leaves ±1e6; that step earns nothing.

    :param strength: factor of the motors' gears in the file, N m at an action of 1
    """

    file: str = "humanoid.xml"
    substeps: int = 48
    friction: float = 0.75
    height: float = 1.35
    low: float = 0.74
    target: float = 200.0
    action_cost: float = 0.002
    strength: float = 0.7

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        model.actuator_gear[:, 0] *= self.strength
        model.actuator_ctrlrange[:] = -1.0, 1.0

    def standing(self, z: th.Tensor) -> th.Tensor:
        return standing(z, self.low, gain=10.0, margin=0.1, most=0.1)

    def reward(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        return th.where(self._is_lost(state), 0.0, super().reward(state, action))

    def terminated(self, state: th.Tensor) -> th.Tensor:
        return super().terminated(state) | self._is_lost(state)

    def _is_lost(self, state: th.Tensor) -> th.Tensor:
        return ~(state.detach().abs() < 1e6).all(1)

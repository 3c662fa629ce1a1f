"""The walker: two legs in a plane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch as th

from gippo_envs.physics.hopper import Planar, standing


@dataclass
class Walker2d(Planar):
    """
    Walk forward, on Gymnasium's model and its motors, with the hopper's kind of reward.

    State [x, z, pitch, thigh, leg, foot, thigh, leg, foot] and their velocities, z from 1.25 m; observation: all but x. Reward

        ẋ + height + 1 - (pitch / upright)² - 0.1 |a|²,   D = clip(z - low - 0.15, -1, 0.3),   height = D, or -200 D²
        where D < 0.

    Episodes end where the torso is below 1.25 m + low.

    :param low: m
    :param upright: rad
    """

    file: str = "walker2d_v5.xml"
    contact_damping: float = 1e3
    strength: float | None = 100.0
    joint_damping: float = 5.0
    low: float = -0.45
    upright: float = math.pi / 6

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        model.dof_armature[3:] = 0.1
        model.qpos0[1] = model.qpos_spring[1] = 0.0

    def reward(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        return super().reward(state, action) + standing(state[:, 1], self.low) + 1 - (state[:, 2] / self.upright).square()

    def terminated(self, state: th.Tensor) -> th.Tensor:
        return ~(state[:, 1] >= self.low)

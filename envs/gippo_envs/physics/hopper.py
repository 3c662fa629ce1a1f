"""The hopper: a leg that hops in a plane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch as th

from gippo_envs.physics import mjcf
from gippo_envs.physics.robot import Robot


@dataclass
class Planar(Robot):
    """
    A robot in the x-z plane, with three joints of its own at the root: x, z, pitch. It observes all but x: [qpos[1:], qvel].

    :param strength: of all motors, N or N m at an action of 1; ``None`` for the file's
    :param mass: of the whole robot, kg; ``None`` for the file's
    :param root_damping: of the first three joints, N s/m and N m s/rad
    :param joint_damping: in addition to the file's, of the others
    :param action_cost: weight of |action|² in the reward
    """

    strength: float | None = None
    mass: float | None = None
    root_damping: float = 0.0
    joint_damping: float = 0.0
    action_cost: float = 0.1

    def prepare(self, model: Any) -> None:
        if self.strength is not None:
            model.actuator_gear[:, 0] = self.strength
        if self.mass is not None:
            mjcf.scale_mass(model, self.mass)
        model.dof_damping[:3] = self.root_damping
        model.dof_damping[3:] += self.joint_damping

    @property
    def observation_size(self) -> int:
        return self.state_size - 1

    def observe(self, state: th.Tensor) -> th.Tensor:
        return state[:, 1:]

    def reward(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        return self.velocity(state)[:, 0] - self.action_cost * action.square().sum(1)


@dataclass
class Upright(Planar):
    """
    A planar robot that should not fall. Its z counts from the model's own pose, and the reward is

        ẋ + height + 1 - (pitch / upright)² - 0.1 |a|²,   D = clip(z - low - 0.15, -1, 0.3),   height = D, or -200 D² where
        D < 0.

    Episodes end where z is below ``low``.

    :param low: m
    :param upright: rad
    """

    contact_damping: float = 1e3
    low: float = -0.45
    upright: float = math.pi / 6

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        model.qpos0[1] = model.qpos_spring[1] = 0.0

    def reward(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        return super().reward(state, action) + standing(state[:, 1], self.low) + 1 - (state[:, 2] / self.upright).square()

    def terminated(self, state: th.Tensor) -> th.Tensor:
        return ~(state[:, 1] >= self.low)


@dataclass
class Hopper(Upright):
    """
    Hop forward (after DiffRL's hopper, on Gymnasium's model); reward and end: :class:`Upright`.

    State [x, z, pitch, thigh, leg, foot] and their velocities, z from 1.25 m; observation: all but x.

    :param armature: added to all six diagonal entries of the mass matrix, kg and kg m²
    """

    file: str = "hopper.xml"
    strength: float | None = 200.0
    root_damping: float = 10.0
    joint_damping: float = 11.0
    armature: float = 1.0

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        model.dof_armature[:] = self.armature


def standing(z: th.Tensor, low: float, gain: float = 1.0, margin: float = 0.15, most: float = 0.3) -> th.Tensor:
    """
    :param z: height (n,), m
    :param low: where the episode ends
    :return: D · gain, or -200 D² where D = clip(z - low - margin, -1, most) is negative, (n,)
    """
    above = (z - low - margin).clamp(-1.0, most)
    return th.where(above < 0, -200 * above.square(), gain * above)
